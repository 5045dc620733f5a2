"""Reading text students from training checkpoints."""

from pathlib import Path

import torch

from efficientsam3.checkpoints.fitting import check_finite, differences, layouts
from efficientsam3.checkpoints.reading import StateDict, load_pickled, select_tensors
from efficientsam3.models.text_student import TextStudent
from efficientsam3.models.text_students import TextArchitecture
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.json_files import parse

_REMEDY = "give a ckpt_epoch_N.pth that `efficientsam3 text train` wrote"


def read_text_student(path: Path) -> tuple[TextArchitecture, StateDict]:
    """The architecture and the weights of a training checkpoint, the averaged ones where it has them.

    Raises:
        UserError: the file is missing or damaged, or holds no text student, or not all of it.
    """
    content = load_pickled(path)
    described = content.get("architecture") if isinstance(content, dict) else None
    if not isinstance(described, dict) or "context_length" not in described:
        raise UserError(f"{path} holds no text student: {_REMEDY}.")
    architecture = parse(TextArchitecture, described, f"architecture in checkpoint {path}", _REMEDY)
    state = dict(select_tensors({"model": content.get("ema") or content.get("model")}, path))
    with torch.device("meta"):
        expected = layouts(TextStudent(architecture).state_dict())
    if wrong := differences(layouts(state), expected):
        raise UserError(f"The text student in {path} does not fit {architecture.backbone} ({wrong}): {_REMEDY}.")
    check_finite(state, path)
    return architecture, state


def load_text_student(path: Path) -> TextStudent:
    """The text student of a training checkpoint, float32, in eval mode on the CPU; errors as `read_text_student`."""
    return TextStudent.from_state(*read_text_student(path))
