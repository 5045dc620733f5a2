"""Students: a timm backbone and the head that turns its feature maps into the teacher's embedding."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Annotated, Any, Self

import timm
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import nn

from efficientsam3.checkpoints.student_keys import PUBLISHED_BACKBONES
from efficientsam3.data.preprocess import LARGEST_IMAGE
from efficientsam3.models.fuse import Pairs, fuse_in_place, linear_pairs
from efficientsam3.models.head_modules import resize
from efficientsam3.models.heads import DEFAULT_HEAD, find_head
from efficientsam3.models.students import TIMM_PREFIX, named_backbones
from efficientsam3.models.tracing import trace
from efficientsam3.runtime.errors import UserError

_PUBLISHED_STRIDE = 32
_LEAST_STRIDE = 1 / 2  # of a map that a head gets unless it asks for finer ones, in cells of the teacher's grid


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class StudentArchitecture:
    """What it takes to build a student, and nothing else: stored with its weights."""

    backbone: str  # of a named student (see `models.students`), or "timm/<model name>"
    embed_dim: Annotated[int, Field(gt=0, le=1 << 16, strict=True)] = 1024
    embed_size: Annotated[int, Field(gt=0, le=1 << 10, strict=True)] = 72
    image_size: Annotated[int, Field(gt=0, le=LARGEST_IMAGE, strict=True)] = 1008
    head: str = DEFAULT_HEAD  # see `models.heads`
    fused: bool = False  # for inference alone, see `models.fuse`

    def __post_init__(self) -> None:
        """Check that a cell is at least a pixel; other values are checked by pydantic before.

        Raises:
            ValidationError: it is not. pydantic makes it of the ValueError.
        """
        if self.embed_size > self.image_size:
            raise ValueError(f"there are more cells a side ({self.embed_size}) than pixels ({self.image_size})")

    @property
    def is_published(self) -> bool:
        """Whether its weights have names in the published layout, which the published loader reads."""
        return self.backbone in PUBLISHED_BACKBONES and self.head == "published" and not self.fused


def is_known_backbone(backbone: str) -> bool:
    """Whether it is a named student's, or `timm/<name>` with a name that timm knows."""
    name = backbone.removeprefix(TIMM_PREFIX)
    return backbone in named_backbones() or (backbone.startswith(TIMM_PREFIX) and timm.is_model(name))


def timm_name(backbone: str) -> str:
    """The timm model behind a backbone name.

    Raises:
        UserError: it is neither a named student's backbone, nor `timm/<name>` with a name that timm knows.
    """
    if not is_known_backbone(backbone):
        raise UserError(
            f"MODEL.BACKBONE {backbone!r} is not known: use one of {', '.join(named_backbones())}, "
            "or timm/<name> with a name from timm.list_models()."
        )
    return named_backbones().get(backbone, backbone.removeprefix(TIMM_PREFIX))


def build_backbone(
    backbone: str, image_size: int, pretrained: bool = False, levels: Sequence[int] = (-1,)
) -> nn.Module:
    """timm's feature extractor, which returns a list of feature maps.

    Args:
        backbone: see `timm_name`.
        image_size: side of the input in pixels.
        pretrained: load timm's ImageNet weights.
        levels: which of the maps that timm offers to return.

    Raises:
        UserError: the name is unknown, or the model has no feature extractor.
    """
    name = timm_name(backbone)
    # Models with absolute positions (ViT, Swin) are built for one size; the others take any.
    size = {"img_size": image_size} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=pretrained, features_only=True, out_indices=list(levels), **size
        )
    except (RuntimeError, TypeError, AssertionError) as error:
        raise UserError(
            f"MODEL.BACKBONE {backbone!r} cannot be used as a feature extractor at {image_size} pixels "
            f"(timm says: {error}); choose another model."
        ) from error
    return model


@lru_cache
def pyramid_levels(backbone: str, image_size: int, embed_size: int, least: float = _LEAST_STRIDE) -> tuple[int, ...]:
    """Which of timm's maps a head that takes several of them gets, finest first.

    The last map of each stride of at least `least` cells of the teacher's grid. Half a cell are strides 8, 16 and 32 of
    the published students, for both of SAM's grids; most of a finer map would be averaged away on the grid. The
    coarsest is always among them.

    Raises:
        UserError: see `build_backbone`; or maps finer than half a cell are asked for, and there is none.
    """
    with torch.device("meta"):
        maps: Any = build_backbone(backbone, image_size).feature_info.info  # type: ignore[union-attr]
    last = {each["reduction"]: index for index, each in enumerate(maps)}
    cell = image_size / embed_size  # pixels
    strides = [stride for stride in sorted(last) if stride >= min(least * cell, max(last))]
    if least < _LEAST_STRIDE and strides[0] >= _LEAST_STRIDE * cell:
        raise UserError(
            f"MODEL.BACKBONE {backbone!r} has no map finer than stride {strides[0]}, which a head for finer ones would "
            "make no better: use MODEL.HEAD fpn."
        )
    return tuple(last[stride] for stride in strides)


class Student(nn.Module):
    """A backbone, its head, and a bilinear resize to the teacher's grid.

    State-dict keys: `backbone.<timm's key>` and `head.*`, `head.{0,1,3}.*` for the published head. A fused one has
    those of its fused modules, is in eval mode, and stays there.
    """

    def __init__(self, architecture: StudentArchitecture, pretrained: bool = False) -> None:
        """Build with random weights, or with timm's ImageNet weights for the backbone (needs timm's hub access)."""
        super().__init__()
        self.architecture = architecture
        size, grid = architecture.image_size, architecture.embed_size
        head = find_head(architecture.head)
        levels = pyramid_levels(architecture.backbone, size, grid, head.pyramid) if head.pyramid else (-1,)
        self.backbone = build_backbone(architecture.backbone, size, pretrained, levels)
        channels: list[int] = self.backbone.feature_info.channels()  # type: ignore[union-attr, operator]
        self.head = head.build(channels, architecture.embed_dim, grid)
        if architecture.fused:
            fuse_in_place(self.eval(), (1, 3, size, size), _fused_pairs(architecture))

    @classmethod
    def from_state(cls, architecture: StudentArchitecture, state: Mapping[str, torch.Tensor]) -> Self:
        """Build with given weights, in float32 and eval mode on the CPU."""
        student = cls(architecture)
        student.load_state_dict(dict(state))
        return student.eval()

    def train(self, mode: bool = True) -> Self:
        """Set the mode.

        Raises:
            UserError: the student is fused.
        """
        if mode and self.architecture.fused:
            raise UserError(
                f"The student {self.architecture.backbone} is fused, for inference alone: train from the checkpoint "
                "that it was fused from."
            )
        return super().train(mode)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Gives the number of a parameter's stage, by its name, for timm's layer-wise learning rates.

        Stages follow each other as in the backbone; a new one begins where the first numbered part of a name changes
        (`stages_1`, `blocks.3`), and what comes before has no number. The head is the last.
        """
        stages: dict[str, int] = {}
        number, before = -1, None
        for name, _ in self.named_parameters():
            stage = _stage_of(name)
            number, before = number + (stage != before), stage
            stages[name] = number
        return stages.__getitem__

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Embed normalised images.

        Args:
            pixel_values: (B, 3, image_size, image_size) float.

        Returns:
            (B, embed_dim, embed_size, embed_size).
        """
        return resize(self.head(self.backbone(pixel_values)), self.architecture.embed_size)


def _stage_of(name: str) -> str:
    """The beginning of a parameter's name, up to the first part with a number; `backbone` or `head` without one."""
    first, *parts = name.split(".")
    numbered = [place for place, part in enumerate(parts[:-1]) if first != "head" and re.search(r"\d", part)]
    return ".".join([first, *(parts[: numbered[0] + 1] if numbered else [])])


@lru_cache(maxsize=16)
def _fused_pairs(architecture: StudentArchitecture) -> Pairs:
    """See `linear_pairs`: the structure is traced once, however often models of it are built."""
    with torch.device("meta"):
        plain = Student(replace(architecture, fused=False)).eval()
    return linear_pairs(plain, (1, 3, architecture.image_size, architecture.image_size))


@lru_cache(maxsize=16)
def check_student_grid(architecture: StudentArchitecture) -> None:
    """Verify the shapes a student produces, computing nothing; once for each architecture that is right.

    Raises:
        UserError: a published backbone does not give image_size / 32 (rounded up) cells at its last stage, or the
            backbone fails at this image size, or its last map is not (B, C, H, W).
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
    if architecture.backbone in PUBLISHED_BACKBONES and features.shape[-1] != grid:
        raise UserError(
            f"MODEL.BACKBONE {architecture.backbone!r} gives {features.shape[-1]} cells a side where {grid} are "
            f"expected at {architecture.image_size} pixels; install a timm version that this project supports."
        )
    embedding = trace(student, pixels)[0]
    expected = (1, architecture.embed_dim, architecture.embed_size, architecture.embed_size)
    assert embedding.shape == expected, (embedding.shape, expected)


@lru_cache(maxsize=16)
def check_half_size(architecture: StudentArchitecture) -> None:
    """Verify that a student takes images of half its size as well, computing nothing.

    Raises:
        UserError: it does not, or its size is odd.
    """
    size = architecture.image_size
    if size % 2:
        raise UserError(f"TRAIN.SMALL_EPOCHS halves images, and {size} pixels a side have no half: leave it 0.")
    with torch.device("meta"):
        student = Student(architecture).eval()
    try:
        trace(student, (1, 3, size // 2, size // 2))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"MODEL.BACKBONE {architecture.backbone!r} takes images of {size} pixels alone, and TRAIN.SMALL_EPOCHS "
            f"gives it half of that ({error}): leave it 0."
        ) from error
