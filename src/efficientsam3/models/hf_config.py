"""Config of the student as a Hugging Face backbone; light, so that it is registered as soon as AutoConfig exists."""

from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, PreTrainedConfig

if TYPE_CHECKING:
    from efficientsam3.models.student import StudentArchitecture

MODEL_TYPE = "efficientsam3_student"


class EfficientSam3StudentConfig(PreTrainedConfig):  # type: ignore[misc]
    """Config of the student backbone, in the vocabulary that SAM3's neck reads.

    `hidden_size` is the embedding's dimension, `image_size // patch_size` its side in cells.
    """

    model_type = MODEL_TYPE
    base_config_key = "backbone_config"

    backbone: str = "repvit_m1_1"
    hidden_size: int = 1024
    patch_size: int = 14
    image_size: int = 1008
    head: str = "published"
    fused: bool = False

    @property
    def values(self) -> dict[str, Any]:
        """The fields of the student that these values describe."""
        grid = self.image_size // self.patch_size
        shape = {"embed_dim": self.hidden_size, "embed_size": grid, "image_size": self.image_size}
        return {"backbone": self.backbone, **shape, "head": self.head, "fused": self.fused}

    @property
    def architecture(self) -> "StudentArchitecture":
        """The student that these values describe."""
        from efficientsam3.models.student import StudentArchitecture

        return StudentArchitecture(**self.values)


# Here and not in the import hook of `efficientsam3`: when this module is what imports transformers, the hook sees it
# half-built.
AutoConfig.register(MODEL_TYPE, EfficientSam3StudentConfig, exist_ok=True)
