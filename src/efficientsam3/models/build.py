"""Building a student with the weights it starts from."""

import logging
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError

from efficientsam3.checkpoints.standardisation import Standardisation
from efficientsam3.models.initial_weights import load_initial_weights
from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.logging import LOGGER_NAME

logger = logging.getLogger(LOGGER_NAME)


def build_student(
    architecture: StudentArchitecture, pretrained: bool | Path = False, standardisation: Standardisation | None = None
) -> Student:
    """A student with its initial weights.

    Args:
        architecture: what to build.
        pretrained: False for random weights; True for timm's ImageNet weights in the backbone, from the Hugging Face
            hub or its local cache; a path for a local file, see `load_initial_weights`.
        standardisation: what the student's targets are standardised by.

    Raises:
        UserError: the weights cannot be had, or do not fit.
    """
    if isinstance(pretrained, Path):
        student = Student(architecture)
        load_initial_weights(student, pretrained, standardisation)
        return student
    try:
        student = Student(architecture, pretrained)
    except (OSError, RuntimeError, HfHubHTTPError) as error:
        if not pretrained:
            raise
        raise UserError(
            f"MODEL.PRETRAINED true: timm cannot get ImageNet weights for {architecture.backbone!r} "
            f"({type(error).__name__}); go online once, or give a local file (--pretrained FILE), or train from "
            "scratch (--pretrained false)."
        ) from error
    origin = "timm's ImageNet weights in the backbone, random ones in the head" if pretrained else "random weights"
    logger.info("student %s starts from %s", architecture.backbone, origin)
    return student
