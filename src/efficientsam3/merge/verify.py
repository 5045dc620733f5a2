"""Verifying a merged model, by reading it back before it replaces anything."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.models.sam3.modeling_sam3 import Sam3VisionNeck

from efficientsam3.checkpoints.fitting import is_finite
from efficientsam3.checkpoints.necks import under
from efficientsam3.checkpoints.reading import StateDict, read_tensors
from efficientsam3.checkpoints.sam3_convert import convert
from efficientsam3.checkpoints.sam3_keys import NATIVE_NECKS, TEXT_PREFIX
from efficientsam3.checkpoints.text_keys import HF_TEXT_PREFIXES, from_native_text
from efficientsam3.checkpoints.writing import digest_tensor
from efficientsam3.merge.account import neck_replacements
from efficientsam3.merge.inputs import Sam3Input, StudentInput
from efficientsam3.models.student import Student
from efficientsam3.models.student_files import load_student_state
from efficientsam3.models.text_student import TextStudent
from efficientsam3.models.text_students import END
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.memory import release_pages
from efficientsam3.sam3.parts import Part

Fingerprint = tuple[tuple[int, ...], torch.dtype, bytes]
_RELEASE_EVERY = 1 << 28  # bytes
# Largest relative difference of the student's embedding by the dtype that its weights are stored in. Freshly built
# RepViT, TinyViT and EfficientViT students were measured at up to 2.1e-3 in float16 and 1.4e-2 in bfloat16.
_TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def fingerprints(tensors: Mapping[str, torch.Tensor], origin: Path) -> dict[str, Fingerprint]:
    """Shape, dtype and hash of every tensor, in little memory.

    Raises:
        UserError: a tensor has values that are not finite.
    """
    result: dict[str, Fingerprint] = {}
    seen = 0
    for key, value in tensors.items():
        if not is_finite(value):
            raise UserError(
                f"{key} from {origin} has values that are not finite, or too large for {value.dtype}: "
                "give an unchanged checkpoint, or --dtype float32."
            )
        result[key] = (tuple(value.shape), value.dtype, digest_tensor(value))
        seen += value.nbytes
        if seen >= _RELEASE_EVERY:
            release_pages(tensors.values())
            seen = 0
    return result


def verify_written(path: Path, expected: Mapping[str, Fingerprint]) -> None:
    """Read a written model back and compare it tensor by tensor.

    Raises:
        UserError: a tensor is missing, or differs from what was to be written.
    """
    tensors = read_tensors(path, values=False)  # all are compared
    if list(tensors) != list(expected) and set(tensors) != set(expected):
        raise UserError(f"{path} was read back with other tensors than were written: check the disk and merge again.")
    found = fingerprints(tensors, path)
    wrong = next((key for key in expected if found[key] != expected[key]), None)
    if wrong is not None:
        raise UserError(f"{path} was read back with another {wrong} than was written: check the disk and merge again.")


@torch.inference_mode()
def verify_student(path: Path, student: StudentInput, dtype: torch.dtype | None, prefix: str | None = None) -> float:
    """Run the student out of a merged model and compare it with the source student on the same noise.

    Args:
        path: the merged model.
        student: the source student.
        dtype: dtype that its weights were stored in, None for unchanged.
        prefix: prefix of its keys where that is not the published one.

    Returns:
        The relative difference of the two embeddings.

    Raises:
        UserError: the embeddings differ by more than rounding.
    """
    state = load_student_state(path, student.architecture.backbone, prefix)
    merged = Student.from_state(student.architecture, state)
    side = student.architecture.image_size
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(side))
    expected = student.build()(pixels)
    difference = float((merged(pixels) - expected).norm() / expected.norm())
    if not difference <= _TOLERANCE[dtype or torch.float32]:
        raise UserError(
            f"The merged student's embedding differs from the source's by {difference:.1e} relative: "
            "give --dtype float32, or report this student."
        )
    return difference


@torch.inference_mode()
def verify_text(path: Path, student: StudentInput, dtype: torch.dtype | None) -> None:
    """Run the text student out of a merged model and compare it with the source on the same tokens.

    Args:
        path: the merged model, a native file or a Hugging Face directory.
        student: the source student, with a text student or without.
        dtype: dtype that the weights were stored in, None for unchanged.

    Raises:
        UserError: the features differ by more than rounding.
    """
    text = student.text
    if text is None:
        return
    tensors = read_tensors(path, values=False)  # compared by `verify_written`
    if path.is_file():
        native = {key.removeprefix(TEXT_PREFIX): value for key, value in tensors.items() if key.startswith(TEXT_PREFIX)}
        state = from_native_text(native)
    else:
        state = {
            own + key.removeprefix(prefix): value
            for own, prefix in HF_TEXT_PREFIXES.items()
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
    ids = torch.randint(END, (2, text.architecture.context_length), generator=torch.Generator().manual_seed(0))
    ids[0, 4:] = text.architecture.pad_id
    ids[0, 4] = ids[1, -1] = END
    merged, expected = (TextStudent.from_state(text.architecture, each)(ids) for each in (state, text.state))
    difference = float((merged - expected).norm() / expected.norm())
    if not difference <= _TOLERANCE[dtype or torch.float32]:
        raise UserError(
            f"The merged text student's features differ from the source's by {difference:.1e} relative: "
            "give --dtype float32, or report this student."
        )


@torch.inference_mode()
def verify_necks(
    path: Path, student: StudentInput, sam3: Sam3Input, parts: frozenset[Part], dtype: torch.dtype | None
) -> None:
    """Run the trained necks out of a merged model and compare them with those of the student on the same noise.

    Args:
        path: the merged model, a native file or a Hugging Face directory.
        student: the source student with its necks.
        sam3: gives the levels that are not trained.
        parts: those that are kept.
        dtype: dtype that the weights were stored in, None for unchanged.

    Raises:
        UserError: a level differs by more than rounding.
    """
    kept = neck_replacements(student, sam3, parts)
    if student.necks is None or not kept:
        return
    tensors = read_tensors(path, values=False)  # compared by `verify_written`
    if path.is_file():
        tensors = convert({key: value for key, value in tensors.items() if key.startswith(NATIVE_NECKS)})
    configs = {"detector": sam3.contents.config.detector_config, "tracker": sam3.contents.config.tracker_config}
    for name in kept:
        config = configs[name].vision_config
        expected = under(sam3.contents.tensors, name) | student.necks.weights(name)
        noise = torch.randn(1, config.backbone_config.hidden_size, 8, 8, generator=torch.Generator().manual_seed(8))
        levels = [_neck(config, state)(noise)[0] for state in (under(tensors, name), expected)]
        difference = max(float((own - other).norm() / other.norm()) for own, other in zip(*levels, strict=True))
        if not difference <= _TOLERANCE[dtype or torch.float32]:
            raise UserError(
                f"The merged {name}'s neck differs from the student's by {difference:.1e} relative: "
                "give --dtype float32, or report this student."
            )


def _neck(config: Any, state: StateDict) -> Any:
    with torch.device("meta"):
        neck = Sam3VisionNeck(config)
    neck.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)
    return neck
