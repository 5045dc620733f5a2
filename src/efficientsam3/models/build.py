"""Building a student with the weights it starts from."""

import logging
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError

from efficientsam3.checkpoints.students import load_student_state
from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.logging import LOGGER_NAME

logger = logging.getLogger(LOGGER_NAME)


def build_student(architecture: StudentArchitecture, pretrained: bool | Path = False) -> Student:
    """A student with its initial weights.

    Args:
        architecture: what to build.
        pretrained: False for random weights; True for timm's ImageNet weights in the backbone, from the Hugging Face
            hub or its local cache; a path for a local student checkpoint (see `load_student_state`) or a backbone in
            timm's own layout.

    Raises:
        UserError: the weights cannot be had, or do not fit.
    """
    if isinstance(pretrained, Path):
        student = Student(architecture)
        load_initial_weights(student, pretrained)
        return student
    try:
        student = Student(architecture, pretrained)
    except (OSError, RuntimeError, HfHubHTTPError) as error:
        if not pretrained:
            raise
        raise UserError(
            f"MODEL.PRETRAINED true: timm cannot get ImageNet weights for {architecture.backbone!r} "
            f"({type(error).__name__}); go online once, or give a local file as MODEL.PRETRAINED, or train from "
            "scratch with --opts MODEL.PRETRAINED false."
        ) from error
    origin = "timm's ImageNet weights in the backbone, random ones in the head" if pretrained else "random weights"
    logger.info("student %s starts from %s", architecture.backbone, origin)
    return student


def load_initial_weights(student: Student, path: Path) -> None:
    """Load a local file into a student: whole students, or a backbone alone.

    Raises:
        UserError: a tensor that is there has the wrong shape, or the backbone is not complete.
    """
    state = load_student_state(path, student.architecture.backbone)
    own = student.state_dict()
    wrong = [key for key, tensor in state.items() if key in own and tensor.shape != own[key].shape]
    missing = [key for key in own if key not in state]
    unknown = [key for key in state if key not in own]
    if wrong or unknown or any(key.startswith("backbone.") for key in missing):
        example = (wrong or unknown or missing)[0]
        raise UserError(
            f"MODEL.PRETRAINED {path} does not fit {student.architecture.backbone!r}: {len(wrong)} tensors of another "
            f"shape, {len(unknown)} unknown, {len(missing)} missing (e.g. {example}); give a checkpoint of it."
        )
    student.load_state_dict({**own, **state})
    logger.info("student starts from %s: %d tensors loaded, %d left random", path, len(state), len(missing))
