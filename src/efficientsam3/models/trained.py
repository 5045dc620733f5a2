"""Students as trainings leave them."""

from pathlib import Path

from efficientsam3.checkpoints.students import read_student
from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.runtime.errors import UserError


def load_trained_student(checkpoint: Path) -> Student:
    """The student of a training checkpoint, in eval mode on the CPU; errors as for `load_student_and_preprocessing`."""
    return load_student_and_preprocessing(checkpoint)[0]


def load_student_and_preprocessing(checkpoint: Path) -> tuple[Student, Preprocessing]:
    """The student of a training checkpoint, in eval mode on the CPU, and what it was trained to be fed.

    Raises:
        UserError: the file holds no student, or does not say for which embedding and pixels it was trained.
    """
    content = read_student(checkpoint)
    if content.architecture is None or content.preprocessing is None:
        raise UserError(f"{checkpoint} does not say what it was trained for: give a ckpt_epoch_N.pth of a training.")
    student = Student(StudentArchitecture(**content.architecture))
    student.load_state_dict(content.state)
    return student.eval(), Preprocessing(**content.preprocessing)
