"""Students: a timm backbone and the head that turns its last feature map into the teacher's embedding."""

from dataclasses import dataclass

import timm
import torch
from torch import nn

from efficientsam3.models.tracing import trace
from efficientsam3.runtime.errors import UserError

# Published backbone name -> timm model. The names are those of the nine published Stage 1 students.
TIMM_NAMES = {
    "repvit_m0_9": "repvit_m0_9",
    "repvit_m1_1": "repvit_m1_1",
    "repvit_m2_3": "repvit_m2_3",
    "tiny_vit_5m": "tiny_vit_5m_224",
    "tiny_vit_11m": "tiny_vit_11m_224",
    "tiny_vit_21m": "tiny_vit_21m_224",
    "efficientvit_b0": "efficientvit_b0",
    "efficientvit_b1": "efficientvit_b1",
    "efficientvit_b2": "efficientvit_b2",
}
# Config name -> published backbone name.
STUDENTS = {
    "es_rv_s": "repvit_m0_9",
    "es_rv_m": "repvit_m1_1",
    "es_rv_l": "repvit_m2_3",
    "es_tv_s": "tiny_vit_5m",
    "es_tv_m": "tiny_vit_11m",
    "es_tv_l": "tiny_vit_21m",
    "es_ev_s": "efficientvit_b0",
    "es_ev_m": "efficientvit_b1",
    "es_ev_l": "efficientvit_b2",
}
TIMM_PREFIX = "timm/"
_PUBLISHED_STRIDE = 32


@dataclass(frozen=True)
class StudentArchitecture:
    """What it takes to build a student, and nothing else: stored beside its weights."""

    backbone: str  # one of TIMM_NAMES, or "timm/<model name>"
    embed_dim: int = 1024
    embed_size: int = 72
    image_size: int = 1008


def timm_name(backbone: str) -> str:
    """The timm model behind a backbone name.

    Raises:
        UserError: neither one of the nine, nor `timm/<name>` with a name that timm knows.
    """
    if backbone in TIMM_NAMES:
        return TIMM_NAMES[backbone]
    name = backbone.removeprefix(TIMM_PREFIX)
    if not backbone.startswith(TIMM_PREFIX) or not timm.is_model(name):
        raise UserError(
            f"MODEL.BACKBONE {backbone!r} is not known: use one of {', '.join(TIMM_NAMES)}, "
            "or timm/<name> with a name from timm.list_models()."
        )
    return name


def build_backbone(backbone: str, image_size: int, pretrained: bool = False) -> nn.Module:
    """timm's feature extractor that returns the last stage's map alone, as a one-element list.

    Raises:
        UserError: the name is unknown, or the model has no feature extractor.
    """
    name = timm_name(backbone)
    # Models with absolute positions (ViT, Swin) are built for one size; the others take any.
    size = {"img_size": image_size} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, features_only=True, out_indices=[-1], **size)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise UserError(
            f"MODEL.BACKBONE {backbone!r} cannot be used as a feature extractor at {image_size} pixels "
            f"(timm says: {error}); choose another model."
        ) from error
    return model


def published_head(in_channels: int, embed_dim: int) -> nn.Sequential:
    """The published projection head: 1x1 convolution without bias, BatchNorm, GELU, 3x3 convolution."""
    return nn.Sequential(
        nn.Conv2d(in_channels, embed_dim, kernel_size=1, bias=False),
        nn.BatchNorm2d(embed_dim),
        nn.GELU(),
        nn.Conv2d(embed_dim, embed_dim, kernel_size=3, padding=1),
    )


class Student(nn.Module):
    """A backbone, its head, and a bilinear resize to the teacher's grid.

    State-dict keys: `backbone.<timm's key>` and `head.{0,1,3}.*`.
    """

    def __init__(self, architecture: StudentArchitecture, pretrained: bool = False) -> None:
        """Build with random weights, or with timm's ImageNet weights for the backbone (needs timm's hub access)."""
        super().__init__()
        self.architecture = architecture
        self.backbone = build_backbone(architecture.backbone, architecture.image_size, pretrained)
        channels: int = self.backbone.feature_info.channels()[-1]  # type: ignore[union-attr, operator]
        self.head = published_head(channels, architecture.embed_dim)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Embed normalised images.

        Args:
            pixel_values: (B, 3, image_size, image_size) float.

        Returns:
            (B, embed_dim, embed_size, embed_size).
        """
        features: torch.Tensor = self.head(self.backbone(pixel_values)[-1])
        size = self.architecture.embed_size
        if features.shape[-2:] == (size, size):
            return features
        resized: torch.Tensor = nn.functional.interpolate(features, (size, size), mode="bilinear", align_corners=False)
        return resized


def check_student_grid(architecture: StudentArchitecture) -> None:
    """Verify the shapes a student produces, computing nothing.

    Raises:
        UserError: one of the nine does not give image_size / 32 (rounded up) cells at its last stage, or the
            backbone fails at this image size, or its output is not (embed_dim, embed_size, embed_size).
    """
    with torch.device("meta"):
        student = Student(architecture).eval()
    pixels = (1, 3, architecture.image_size, architecture.image_size)
    try:
        features = trace(student.backbone, pixels)[0][-1]
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"MODEL.BACKBONE {architecture.backbone!r} does not take images of {architecture.image_size} pixels "
            f"({error}); change DATA.IMG_SIZE or the backbone."
        ) from error
    if features.ndim != 4 or features.shape[-1] != features.shape[-2]:
        raise UserError(
            f"MODEL.BACKBONE {architecture.backbone!r} gives features of shape {tuple(features.shape)}, not "
            "(B, C, H, W) maps of a square; choose a convolutional or hierarchical model."
        )
    grid = -(-architecture.image_size // _PUBLISHED_STRIDE)
    if architecture.backbone in TIMM_NAMES and features.shape[-1] != grid:
        raise UserError(
            f"MODEL.BACKBONE {architecture.backbone!r} gives {features.shape[-1]} cells a side where {grid} are "
            f"expected at {architecture.image_size} pixels; install a timm version that this project supports."
        )
    embedding = trace(student, pixels)[0]
    expected = (1, architecture.embed_dim, architecture.embed_size, architecture.embed_size)
    assert embedding.shape == expected, (embedding.shape, expected)
