from pathlib import Path

import pytest
import torch

from efficientsam3.models.build import build_student
from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.runtime.errors import UserError

ARCHITECTURE = StudentArchitecture("efficientvit_b0", 8, 16, 224)


def test_a_local_student_is_loaded_whole(tmp_path: Path) -> None:
    source = Student(ARCHITECTURE)
    torch.save({"model": source.state_dict()}, tmp_path / "a.pth")
    loaded = build_student(ARCHITECTURE, tmp_path / "a.pth").state_dict()
    for key, value in source.state_dict().items():
        assert torch.equal(loaded[key], value), key


def test_a_student_of_another_backbone_is_refused(tmp_path: Path) -> None:
    torch.save({"model": Student(StudentArchitecture("repvit_m0_9", 8, 16, 224)).state_dict()}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth"):
        build_student(ARCHITECTURE, tmp_path / "a.pth")


def test_imagenet_weights_offline_are_an_error_with_the_remedy() -> None:
    with pytest.raises(UserError, match=r"MODEL\.PRETRAINED true.*\(--pretrained false\)"):
        build_student(ARCHITECTURE, pretrained=True)
