"""The weights that a student starts from, read from a local file in any of several layouts."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from efficientsam3.checkpoints.reading import StateDict, read_tensors
from efficientsam3.checkpoints.standardisation import Standardisation
from efficientsam3.checkpoints.student_keys import BACKBONE_PREFIX, HEAD_PREFIX, is_fused
from efficientsam3.models.heads import output_prefix
from efficientsam3.models.student import Student
from efficientsam3.models.student_files import holds_student, read_student
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.logging import LOGGER_NAME

logger = logging.getLogger(LOGGER_NAME)
_MOST_NAMES = 4


@dataclass(frozen=True)
class InitialWeights:
    """What was loaded and what was not."""

    loaded: tuple[str, ...]  # by the student's names
    left_random: tuple[str, ...]  # likewise
    unused: tuple[str, ...]  # by the file's names
    by_order: bool  # whether the file has other names, so that its tensors were matched by order and shape


def load_initial_weights(
    student: Student, path: Path, standardisation: Standardisation | None = None
) -> InitialWeights:
    """Load a local file into a student: its whole backbone, and its head where the file has one that fits.

    Args:
        student: gets the weights.
        path: a student in any form that `read_student` takes; or a backbone in timm's layout; or one with the tensors
            of timm's in the same order under other names. See `read_tensors` for the formats.
        standardisation: what the student's targets are standardised by; a loaded head is made to give them.

    Raises:
        UserError: nothing in the file fits, or a tensor of the backbone is missing or has another shape.
    """
    own, tensors = student.state_dict(), read_tensors(path)
    places, by_order = {key: key for key in own}, False
    if holds_student(tensors):
        tensors = read_student(path, student.architecture.backbone).state
        if is_fused(tensors) and not is_fused(own):
            raise UserError(
                f"MODEL.PRETRAINED {path} holds a fused student, which cannot be trained: give the one "
                "that it was fused from."
            )
    else:
        places = _places_by_name(own, tensors)
        if not places:
            places, by_order = _places_by_order(own, tensors), True
    fitting = {key: tensors[name] for key, name in places.items() if name in tensors and _fits(own[key], tensors[name])}
    _check_backbone(student, path, fitting, {key for key, name in places.items() if name in tensors})
    if any(key not in fitting for key in own if key.startswith(HEAD_PREFIX)):
        fitting = {key: value for key, value in fitting.items() if key.startswith(BACKBONE_PREFIX)}
    elif standardisation is not None:
        fitting = standardisation.unfold(fitting, output_prefix(fitting))
    student.load_state_dict({**own, **fitting})
    used = {places[key] for key in fitting}
    weights = InitialWeights(
        loaded=tuple(fitting),
        left_random=tuple(key for key in own if key not in fitting),
        unused=tuple(name for name in tensors if name not in used),
        by_order=by_order,
    )
    _say(path, weights)
    return weights


def _fits(own: torch.Tensor, tensor: torch.Tensor) -> bool:
    return own.shape == tensor.shape


def _places_by_name(own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """From the names of the student's backbone to those of the file, which are timm's of the whole model.

    timm's feature extractors rename what they wrap: `stages.0.` becomes `stages_0.`, or stands under `model.`.
    """
    names = {_plain(name): name for name in tensors}
    keys = (key for key in own if key.startswith(BACKBONE_PREFIX))
    found = ((key, names.get(_plain(key.removeprefix(BACKBONE_PREFIX)))) for key in keys)
    return {key: name for key, name in found if name is not None}


def _plain(name: str) -> str:
    return name.removeprefix("model.").replace(".", "_")


def _places_by_order(own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """From the names of the student's backbone to those of the file's first tensors; empty where one does not fit.

    They fit in shape and in the last part of their names (`weight`, `running_mean`). What a file has beyond the
    backbone is a classifier's.
    """
    keys = [key for key in own if key.startswith(BACKBONE_PREFIX)]
    places = dict(zip(keys, tensors, strict=False))
    whole = len(places) == len(keys) and all(
        _fits(own[key], tensors[name]) and key.rpartition(".")[2] == name.rpartition(".")[2]
        for key, name in places.items()
    )
    return places if whole else {}


def _check_backbone(student: Student, path: Path, fitting: StateDict, there: set[str]) -> None:
    keys = [key for key in student.state_dict() if key.startswith(BACKBONE_PREFIX)]
    lacking = [key for key in keys if key not in fitting]
    if not lacking:
        return
    name = student.architecture.backbone
    if len(lacking) == len(keys) and not there:
        raise UserError(
            f"MODEL.PRETRAINED {path} matches nothing of {name!r}: it has none of its {len(keys)} tensors, neither by "
            "name nor in the same order and shapes; give a checkpoint of that backbone."
        )
    wrong = [key for key in lacking if key in there]
    raise UserError(
        f"MODEL.PRETRAINED {path} does not fit {name!r}: of {len(keys)} tensors of the backbone, {len(wrong)} have "
        f"another shape there and {len(lacking) - len(wrong)} are missing (e.g. {(wrong or lacking)[0]}); give a "
        "checkpoint of that backbone."
    )


def _say(path: Path, weights: InitialWeights) -> None:
    how = " by their order and shapes, since the file has other names than timm" if weights.by_order else ""
    logger.info("student starts from %s: %d tensors loaded%s", path, len(weights.loaded), how)
    if weights.left_random:
        logger.info("%d tensors are not in it, or do not fit, and start random: %s", *_count(weights.left_random))
    if weights.unused:
        logger.info("%d tensors of the file are not used: %s", *_count(weights.unused))


def _count(names: tuple[str, ...]) -> tuple[int, str]:
    return len(names), ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")
