"""Reading text students: from our training checkpoints, and from published files."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from efficientsam3.checkpoints.fitting import check_finite, differences, layouts
from efficientsam3.checkpoints.reading import StateDict, load_pickled, read_tensors, select_tensors
from efficientsam3.checkpoints.sam3_keys import TEXT_PREFIX
from efficientsam3.checkpoints.text_keys import from_native_text
from efficientsam3.models.text_student import TextStudent
from efficientsam3.models.text_students import TEXT_STUDENTS, TextArchitecture
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.json_files import parse

_REMEDY = "give a ckpt_epoch_N.pth that `efficientsam3 text train` wrote, or a published text student"
_TABLE = "encoder.embedding_layer.weight"
_POSITIONS = "encoder.positional_embedding.pos_embed.pos_embed"
_PUBLISHED_LAYER = re.compile(r"encoder\.transformer\.(\d+)\.(token_mixer\.)?")


def read_text_student(path: Path) -> tuple[TextArchitecture, StateDict]:
    """The architecture and the weights of a training checkpoint, the averaged ones where it has them, or of a published
    file: of a text student alone, or of a whole model with one.

    A published file does not say how a phrase is padded: as the published code does it.

    Raises:
        UserError: the file is missing or damaged, or holds no text student, or not all of it.
    """
    content = None if path.suffix == ".safetensors" else load_pickled(path)
    described = content.get("architecture") if isinstance(content, dict) else None
    if isinstance(described, dict) and "context_length" in described:
        assert isinstance(content, dict)
        architecture = parse(TextArchitecture, described, f"architecture in checkpoint {path}", _REMEDY)
        state = dict(select_tensors({"model": content.get("ema") or content.get("model")}, path))
    else:
        tensors = read_tensors(path) if content is None else select_tensors(content, path)
        native = _published(tensors, path)
        architecture, state = _identify(native, path), from_native_text(native)
    with torch.device("meta"):
        expected = layouts(TextStudent(architecture).state_dict())
    if wrong := differences(layouts(state), expected):
        raise UserError(f"The text student in {path} does not fit {architecture.backbone} ({wrong}): {_REMEDY}.")
    check_finite(state, path)
    return architecture, state


def _published(tensors: Mapping[str, torch.Tensor], path: Path) -> StateDict:
    """The tensors of a text student under the published names, out of a file of it alone or of a whole model."""
    merged = {key.removeprefix(TEXT_PREFIX): value for key, value in tensors.items() if key.startswith(TEXT_PREFIX)}
    found = {key: value for key, value in (merged or tensors).items() if key.startswith(("encoder.", "projector."))}
    if not {_TABLE, _POSITIONS, "projector.weight"} <= found.keys() or not (merged or len(found) == len(tensors)):
        raise UserError(f"{path} holds no text student: {_REMEDY}.")
    return found


def _identify(native: Mapping[str, torch.Tensor], path: Path) -> TextArchitecture:
    """Which of the named students it is.

    Raises:
        UserError: none of them, or one of more positions than SAM3 asks for.
    """
    layers = [found for key in native if (found := _PUBLISHED_LAYER.match(key))]
    count = 1 + max((int(found[1]) for found in layers), default=-1)
    sizes = native[_TABLE].shape[-1], count, any(found[2] for found in layers)
    named = (name for name, shape in TEXT_STUDENTS.items() if (shape.width, shape.layers, shape.convolutional) == sizes)
    backbone = next(named, None)
    if backbone is None:
        raise UserError(
            f"The text student in {path} has a width of {sizes[0]} and {count} layers, as none of "
            f"{', '.join(TEXT_STUDENTS)} has: {_REMEDY}."
        )
    shape: dict[str, Any] = {
        "embed_dim": len(native["projector.weight"]),
        "context_length": native[_POSITIONS].shape[-2],
    }
    return parse(TextArchitecture, {"backbone": backbone, "padding": "published", **shape}, f"{path}", _REMEDY)


def load_text_student(path: Path) -> TextStudent:
    """The text student of a file, float32, in eval mode on the CPU; files and errors as for `read_text_student`."""
    return TextStudent.from_state(*read_text_student(path))
