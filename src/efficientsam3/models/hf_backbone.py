"""The student as a Hugging Face backbone, in the place of SAM3's trunk.

`Sam3VisionModel` builds its trunk with `AutoModel.from_config(config.backbone_config)`; with this class registered,
`Sam3Model`, `Sam3TrackerModel` and `Sam3VideoModel` run on a student, `save_pretrained` and `from_pretrained` included.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from efficientsam3.models.hf_config import MODEL_TYPE, EfficientSam3StudentConfig
from efficientsam3.models.student import Student, StudentArchitecture


class EfficientSam3StudentModel(PreTrainedModel):  # type: ignore[misc]
    """A `Student` with the interface of SAM3's trunk."""

    config_class = EfficientSam3StudentConfig
    base_model_prefix = MODEL_TYPE
    main_input_name = "pixel_values"

    def __init__(self, config: EfficientSam3StudentConfig) -> None:
        super().__init__(config)
        self.student = Student(config.architecture)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Do the base class's work, and restore the buffers that no checkpoint holds.

        `from_pretrained` builds on the meta device and leaves such buffers (TinyViT's and Swin's index tables) as
        uninitialised memory, relying on this hook. It is called for the modules that own them, not for `Student`.
        """
        super()._init_weights(module)
        if module._non_persistent_buffers_set:
            prefix = next(name for name, candidate in self.student.named_modules() if candidate is module)
            computed = _computed_buffers(self.config.architecture)
            for name in module._non_persistent_buffers_set:
                getattr(module, name).copy_(computed[f"{prefix}.{name}"])

    def get_input_embeddings(self) -> nn.Module:
        """The first convolution; transformers asks every backbone for it."""
        return next(module for module in self.student.modules() if isinstance(module, nn.Conv2d))

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutput:
        """Embed normalised images: (B, 3, S, S) to `last_hidden_state` (B, cells, hidden_size), row by row."""
        embedding = self.student(pixel_values)
        return BaseModelOutput(last_hidden_state=embedding.flatten(2).transpose(1, 2))  # [B, G * G, D]


class AbsentBackboneConfig(PreTrainedConfig):  # type: ignore[misc]
    """Config of no backbone, with the shape of the one that another model lends."""

    model_type = "efficientsam3_absent"
    base_config_key = "backbone_config"

    hidden_size: int = 1024
    patch_size: int = 14
    image_size: int = 1008


class AbsentBackbone(PreTrainedModel):  # type: ignore[misc]
    """What stands for a trunk in a model that is given embeddings, and never pixels."""

    config_class = AbsentBackboneConfig
    main_input_name = "pixel_values"


@lru_cache(maxsize=1)
def _computed_buffers(architecture: StudentArchitecture) -> dict[str, torch.Tensor]:
    """The non-persistent buffers of a fresh student."""
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        student = Student(architecture)
    persistent = student.state_dict().keys()
    return {name: buffer for name, buffer in student.named_buffers() if name not in persistent}


# Here and not in the import hook of `efficientsam3`, see hf_config.
AutoModel.register(EfficientSam3StudentConfig, EfficientSam3StudentModel, exist_ok=True)
AutoConfig.register(AbsentBackboneConfig.model_type, AbsentBackboneConfig, exist_ok=True)
AutoModel.register(AbsentBackboneConfig, AbsentBackbone, exist_ok=True)
