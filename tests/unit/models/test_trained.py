"""What a training leaves says what it was trained for; other files do not."""

from pathlib import Path

import pytest
import torch

from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.models.trained import load_trained_student
from efficientsam3.runtime.errors import UserError

ARCHITECTURE = StudentArchitecture("efficientvit_b0", 8, 4, 64)


def test_weights_alone_do_not_say_what_they_were_trained_for(tmp_path: Path) -> None:
    torch.save(Student(ARCHITECTURE).state_dict(), tmp_path / "bare.pt")
    with pytest.raises(UserError, match="does not say what it was trained for"):
        load_trained_student(tmp_path / "bare.pt")
