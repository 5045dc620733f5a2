"""Sizes of the students and of SAM3: parameters and multiply-accumulates, counted without running anything."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Sam3ViTConfig, Sam3ViTModel

from efficientsam3.benchmark.requests import ALL
from efficientsam3.checkpoints.reading import read_tensors
from efficientsam3.checkpoints.sam3 import inspect_trunk
from efficientsam3.checkpoints.sam3_keys import TEXT_PREFIX
from efficientsam3.checkpoints.sam3_tensors import TRUNK_PREFIX, sam3_tensors
from efficientsam3.models.heads import DEFAULT_HEAD
from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.models.students import STUDENTS, backbone_of
from efficientsam3.models.tracing import trace
from efficientsam3.runtime.errors import UserError

VISION_PREFIX = "detector.backbone.vision_backbone."


@dataclass(frozen=True)
class TeacherSize:
    """SAM3, in parameters (without rotary tables) and in multiply-accumulates of one image through the trunk."""

    parameters: int
    vision: int  # the trunk and both necks: what is published as the image encoder's size
    language: int
    trunk: int  # what a student replaces
    trunk_macs: int
    image_size: int


@dataclass(frozen=True)
class StudentSize:
    """One student, in parameters and in multiply-accumulates of one image."""

    name: str
    backbone: str
    backbone_parameters: int  # what is published as the student's size
    head_parameters: int
    backbone_macs: int
    head_macs: int

    @property
    def parameters(self) -> int:
        """Parameters of the whole encoder, which takes the trunk's place."""
        return self.backbone_parameters + self.head_parameters

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole encoder."""
        return self.backbone_macs + self.head_macs


@dataclass(frozen=True)
class Comparison:
    """Students and their teacher."""

    teacher: TeacherSize
    students: tuple[StudentSize, ...]
    head: str


def compare_models(names: Iterable[str], sam3_checkpoint: Path | None = None, head: str = DEFAULT_HEAD) -> Comparison:
    """Compare the sizes of students with SAM3's, in seconds and without weights.

    Args:
        names: config names such as `es_rv_m`, or `all`.
        sam3_checkpoint: count this native checkpoint's tensors, and size the students for its embedding and image size.
            By default, the shipped table of Meta's sam3.pt.
        head: the head of all students.

    Raises:
        UserError: an unknown name, or a file that is not a native SAM3 checkpoint.
    """
    students = select_students(names)
    if sam3_checkpoint is None:
        shapes, trunk = sam3_shapes(), Sam3ViTConfig()
    else:
        shapes, trunk = checkpoint_shapes(sam3_checkpoint), inspect_trunk(sam3_checkpoint)
    shape = (trunk.hidden_size, trunk.image_size // trunk.patch_size, trunk.image_size)
    return Comparison(
        measure_teacher(shapes, trunk),
        tuple(measure_student(name, StudentArchitecture(backbone_of(name), *shape, head)) for name in students),
        head,
    )


def select_students(names: Iterable[str]) -> list[str]:
    """The config names behind `names`, in the order given and each once; `all` stands for every named student.

    Raises:
        UserError: a name is not that of a named student.
    """
    selected: dict[str, None] = {}
    for name in names:
        if name != ALL and name not in STUDENTS:
            raise UserError(f"--student {name} is not known: use {ALL}, or one of {', '.join(STUDENTS)}.")
        selected |= dict.fromkeys(STUDENTS if name == ALL else [name])
    return list(selected)


def sam3_shapes() -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of Meta's sam3.pt, from the shipped table."""
    return {key: fact.shape for key, fact in sam3_tensors().items() if fact.dtype != "complex64"}


def checkpoint_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of a native checkpoint; its values are not read.

    Raises:
        UserError: the file is not readable, or not in sam3.pt's layout.
    """
    tensors = read_tensors(path, values=False)
    if not any(key.startswith(TRUNK_PREFIX) for key in tensors):
        raise UserError(f"--sam3-ckpt {path} has no tensors under {TRUNK_PREFIX}: give Meta's sam3.pt.")
    return {key: tuple(tensor.shape) for key, tensor in tensors.items() if not tensor.is_complex()}


def measure_teacher(shapes: Mapping[str, tuple[int, ...]], trunk: Sam3ViTConfig) -> TeacherSize:
    """Count the tensors of a native checkpoint by their prefixes, and the work of the trunk that `trunk` describes."""

    def count(prefix: str) -> int:
        return sum(math.prod(shape) for key, shape in shapes.items() if key.startswith(prefix))

    with torch.device("meta"):
        model = Sam3ViTModel(trunk).eval()
    _, trunk_macs = trace(model, (1, 3, trunk.image_size, trunk.image_size))
    return TeacherSize(
        parameters=count(""),
        vision=count(VISION_PREFIX),
        language=count(TEXT_PREFIX),
        trunk=count(TRUNK_PREFIX),
        trunk_macs=trunk_macs,
        image_size=trunk.image_size,
    )


def measure_student(name: str, architecture: StudentArchitecture) -> StudentSize:
    """Count a student's parameters and work at its image size."""
    with torch.device("meta"):
        student = Student(architecture).eval()
    pixels = (1, 3, architecture.image_size, architecture.image_size)
    (_, backbone_macs), (_, macs) = trace(student.backbone, pixels), trace(student, pixels)
    return StudentSize(
        name=name,
        backbone=architecture.backbone,
        backbone_parameters=_parameters(student.backbone),
        head_parameters=_parameters(student.head),
        backbone_macs=backbone_macs,
        head_macs=macs - backbone_macs,
    )


def _parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
