"""The student as a Hugging Face backbone, in the place of SAM3's trunk.

`Sam3VisionModel` builds its trunk with `AutoModel.from_config(config.backbone_config)`; with this class registered,
`Sam3Model`, `Sam3TrackerModel` and `Sam3VideoModel` run on a student, `save_pretrained` and `from_pretrained` included.
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from efficientsam3.models.student import Student, StudentArchitecture

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

    @property
    def architecture(self) -> StudentArchitecture:
        """The student these values describe."""
        return StudentArchitecture(self.backbone, self.hidden_size, self.image_size // self.patch_size, self.image_size)


class EfficientSam3StudentModel(PreTrainedModel):  # type: ignore[misc]
    """A `Student` that answers as SAM3's trunk does."""

    config_class = EfficientSam3StudentConfig
    base_model_prefix = MODEL_TYPE
    main_input_name = "pixel_values"

    def __init__(self, config: EfficientSam3StudentConfig) -> None:
        super().__init__(config)
        self.student = Student(config.architecture)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The first convolution: what transformers asks of every backbone."""
        return next(module for module in self.student.modules() if isinstance(module, nn.Conv2d))

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutput:
        """Embed normalised images: (B, 3, S, S) to `last_hidden_state` (B, cells, hidden_size), row by row."""
        embedding = self.student(pixel_values)
        return BaseModelOutput(last_hidden_state=embedding.flatten(2).transpose(1, 2))  # [B, G * G, D]


def register() -> None:
    """Make transformers' Auto classes know the student backbone. Calling it twice does no harm."""
    AutoConfig.register(MODEL_TYPE, EfficientSam3StudentConfig, exist_ok=True)
    AutoModel.register(EfficientSam3StudentConfig, EfficientSam3StudentModel, exist_ok=True)
