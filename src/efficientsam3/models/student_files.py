"""Reading students from every kind of file that holds them: training checkpoints, state dicts, merged models."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from efficientsam3.checkpoints.fitting import check_finite, differences, layouts
from efficientsam3.checkpoints.reading import StateDict, check_tensors, load_pickled, read_tensors, select_tensors
from efficientsam3.checkpoints.sam3_keys import HF_STUDENT_PREFIX, STUDENT_PREFIX
from efficientsam3.checkpoints.standardisation import Standardisation
from efficientsam3.checkpoints.student_keys import (
    BACKBONE_PREFIX,
    HEAD_PREFIX,
    PUBLISHED_BACKBONES,
    identify_published,
    is_published_layout,
    published_to_timm,
    timm_to_published,
)
from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.models.heads import backbone_width, embedding_width, output_prefix
from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.json_files import parse

_DDP_PREFIX = "module."
_REMEDY = "give an unchanged checkpoint of this version"
Part = TypeVar("Part")


@dataclass(frozen=True)
class StudentFile:
    """A student's weights and what is known about it."""

    state: StateDict  # keys as a `Student` has them
    backbone: str
    architecture: StudentArchitecture | None  # None in files that others wrote
    preprocessing: Preprocessing | None  # likewise


def read_student(path: Path, backbone: str | None = None) -> StudentFile:
    """Read a student: a training checkpoint, a bare state dict, `{"model": …}`, one saved under DDP, or a merged model.

    The weights returned always give the teacher's features: from a training checkpoint, the averaged weights where it
    has them, with the standardisation of the targets folded in.

    Args:
        path: the file.
        backbone: the backbone that it must have; needed for files that do not say.

    Raises:
        UserError: the file holds no student, or another one, or does not say which.
    """
    content = None if path.is_dir() or path.suffix == ".safetensors" else load_pickled(path)
    described = content if isinstance(content, dict) and isinstance(content.get("architecture"), dict) else {}
    if "ema" in described:
        content = {"model": described["ema"]}
    bare = _bare_student(read_tensors(path) if content is None else select_tensors(content, path), path)
    if described.get("normalisation") is not None:
        bare = _standardisation(described["normalisation"], bare, path).fold(bare, output_prefix(bare))
    architecture = described_part(described, "architecture", StudentArchitecture, path)
    preprocessing = described_part(described, "preprocessing", Preprocessing, path)
    if architecture and preprocessing and architecture.image_size != preprocessing.image_size:
        raise UserError(
            f"Checkpoint {path} is of a student for {architecture.image_size} pixels whose images have "
            f"{preprocessing.image_size}: {_REMEDY}."
        )
    found = architecture.backbone if architecture else identify_backbone(bare)
    if None not in (found, backbone) and found != backbone:
        raise UserError(f"Checkpoint {path} holds a {found} student, not {backbone}: give the one that fits.")
    backbone = found or backbone
    if backbone is None:
        raise UserError(
            f"Checkpoint {path} does not say which student it holds, and its tensors are none of "
            f"{', '.join(PUBLISHED_BACKBONES)}: give the training checkpoint ckpt_epoch_N.pth itself."
        )
    return StudentFile(to_timm_layout(bare, backbone), backbone, architecture, preprocessing)


def described_part(content: Mapping[str, Any], name: str, kind: type[Part], path: Path) -> Part | None:
    """What a training checkpoint says under a name; None where it does not say.

    Raises:
        UserError: it is not understood.
    """
    value = content.get(name)
    return None if value is None else parse(kind, value, f"{name} in checkpoint {path}", _REMEDY)


def _standardisation(moments: Any, state: StateDict, path: Path) -> Standardisation:
    """The moments of a checkpoint's targets, which have a value for each channel of the student."""
    width = embedding_width(state)
    try:
        found = Standardisation.from_state(moments)
    except (LookupError, TypeError):
        found = None
    tensors = {} if found is None else {f"normalisation.{key}": value for key, value in found.state_dict().items()}
    if found is None or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise UserError(f"normalisation in checkpoint {path} is not a mean and a std: {_REMEDY}.")
    check_tensors(tensors, path)
    check_finite(tensors, path)
    mean, std, rotation = found.mean, found.std, found.rotation
    if rotation is not None:
        _check_rotation(rotation, width, path)
    if mean.shape != (width,) or std.shape != (width,) or not bool((std > 0).all()):
        raise UserError(
            f"normalisation in checkpoint {path} has shapes {tuple(mean.shape)} and {tuple(std.shape)} or deviations "
            f"that are not positive, where the student has {width} channels: {_REMEDY}."
        )
    return found


def _check_rotation(rotation: torch.Tensor, width: int | None, path: Path) -> None:
    if rotation.shape == (width, width):
        error = (rotation.double() @ rotation.double().T - torch.eye(len(rotation), dtype=torch.float64)).abs().max()
        if error < 1e-4:
            return
    raise UserError(
        f"normalisation.rotation in checkpoint {path} has the shape {tuple(rotation.shape)} or is no rotation, where "
        f"the student has {width} channels: {_REMEDY}."
    )


def identify_backbone(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Which published backbone a student's state dict belongs to, in either layout; None if it is none of them."""
    return identify_published(tensors, backbone_width(tensors))


def load_trained_student(checkpoint: Path) -> Student:
    """The student of a training checkpoint, in eval mode on the CPU; errors as for `load_student_and_preprocessing`."""
    return load_student_and_preprocessing(checkpoint)[0]


def load_student_and_preprocessing(checkpoint: Path) -> tuple[Student, Preprocessing]:
    """The student of a training checkpoint, in eval mode on the CPU, and the preprocessing that it was trained with.

    Raises:
        UserError: the file holds no student, or does not say for which embedding and pixels it was trained.
    """
    content = read_student(checkpoint)
    if content.architecture is None or content.preprocessing is None:
        raise UserError(f"{checkpoint} does not say what it was trained for: give a ckpt_epoch_N.pth of a training.")
    check_student(content.state, content.architecture, checkpoint)
    return Student.from_state(content.architecture, content.state), content.preprocessing


def check_student(state: StateDict, architecture: StudentArchitecture, path: Path) -> None:
    """Check that weights are those of a student, computing nothing but whether they are finite.

    Raises:
        UserError: a tensor is missing, unexpected, of another shape or other numbers, or not finite.
    """
    with torch.device("meta"):
        expected = layouts(Student(architecture).state_dict())
    wrong = differences(layouts(state), expected)
    if wrong:
        raise UserError(
            f"The student in {path} does not fit {architecture.backbone} ({wrong}): give a whole checkpoint."
        )
    check_finite(state, path)


def load_student_state(path: Path, backbone: str, prefix: str | None = None) -> StateDict:
    """The state dict of a student of known backbone, with the keys a `Student` has. See `read_student` for the files.

    `prefix` is the prefix of its keys in a merged file where that is not the published one.

    Raises:
        UserError: the file holds no student, or another one.
    """
    bare = _bare_student(read_tensors(path, prefix or ""), path, prefix)
    found = identify_backbone(bare)
    if backbone in PUBLISHED_BACKBONES and found not in (None, backbone):
        raise UserError(f"Checkpoint {path} holds a {found} student, not {backbone}: give the one that fits.")
    return to_timm_layout(bare, backbone)


def holds_student(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether tensors are a student's, or a merged model's, by their names; not a backbone alone."""
    prefixes = (BACKBONE_PREFIX, STUDENT_PREFIX, HF_STUDENT_PREFIX, _DDP_PREFIX + BACKBONE_PREFIX)
    return any(key.startswith(prefixes) for key in tensors)


def _bare_student(tensors: Mapping[str, torch.Tensor], path: Path, merged_prefix: str | None = None) -> StateDict:
    """Take off the prefixes that DDP and merging put before a student's keys."""
    for prefix in (merged_prefix or STUDENT_PREFIX, HF_STUDENT_PREFIX, _DDP_PREFIX):
        inner = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if inner:
            tensors = inner
    stray = next((key for key in tensors if not key.startswith((BACKBONE_PREFIX, HEAD_PREFIX))), None)
    if stray is not None:
        raise UserError(
            f"Checkpoint {path} holds no student: its tensor {stray} is neither under {BACKBONE_PREFIX} nor "
            f"{HEAD_PREFIX}; give a student's checkpoint, or a merged model."
        )
    return dict(tensors)


def to_timm_layout(state: Mapping[str, torch.Tensor], backbone: str) -> StateDict:
    """A student's state dict with the keys a `Student` has, whichever layout it comes in.

    Raises:
        UserError: the state dict is in the published layout of another backbone.
    """
    # timm wraps some models (ViT) in one called `model`, so their keys alone look published.
    if backbone not in PUBLISHED_BACKBONES or not is_published_layout(state):
        return dict(state)
    return {published_to_timm(key, backbone): value for key, value in state.items()}


def to_published_layout(state: Mapping[str, torch.Tensor], backbone: str) -> StateDict:
    """A student's state dict in the published layout if its backbone has one, and as it is if not.

    Raises:
        UserError: the state dict belongs to another backbone.
    """
    if backbone not in PUBLISHED_BACKBONES or is_published_layout(state):
        return dict(state)
    return {timm_to_published(key, backbone): value for key, value in state.items()}
