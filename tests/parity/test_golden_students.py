"""The nine published students against the architecture authors' own code, at 1008 pixels."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.models.student_files import load_student_state
from tiny import NAMED_BACKBONES


@pytest.mark.parametrize("backbone", NAMED_BACKBONES)
@torch.inference_mode()
def test_embedding(
    backbone: str,
    reference: Path,
    generator: ModuleType,
    relative: Callable[[torch.Tensor, torch.Tensor], float],
    tmp_path: Path,
) -> None:
    torch.save({"model": generator.student_like(backbone)}, tmp_path / "published.pth")
    student = Student(StudentArchitecture(backbone)).eval()
    student.load_state_dict(load_student_state(tmp_path / "published.pth", backbone))
    pixels = torch.randn(1, 3, 1008, 1008, generator=torch.Generator().manual_seed(1008))
    found = student(pixels)[0, :, ::8, ::8]
    assert relative(found, load_file(reference / "golden_students.safetensors")[backbone]) <= 1e-3
