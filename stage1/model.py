"""The builders of teachers and students, under the published name of this file, with its published arguments."""

from pathlib import Path

import torch

from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.models import build, teacher
from efficientsam3.models.student import Student, StudentArchitecture

__all__ = ["build_student", "build_teacher"]


def build_student(architecture: StudentArchitecture, pretrained: bool | Path = False) -> Student:
    """See `models.build.build_student`."""
    return build.build_student(architecture, pretrained)


def build_teacher(
    path: Path,
    preprocessing: Preprocessing,
    embed_dim: int,
    embed_size: int,
    device: torch.device,
    autocast: torch.dtype | None = None,
) -> teacher.Teacher:
    """Load a teacher; `autocast` asks for mixed precision, in the type that the device has. See `models.teacher`."""
    spec = teacher.inspect_teacher(path, preprocessing.image_size, embed_dim, embed_size)
    return teacher.build_teacher(spec, preprocessing, device, autocast is not None)
