"""Fusing the student of a model, for inference."""

from dataclasses import replace
from pathlib import Path

import torch

from efficientsam3.checkpoints.reading import StateDict, read_tensors
from efficientsam3.checkpoints.sam3_keys import HF_STUDENT_PREFIX, STUDENT_PREFIX
from efficientsam3.checkpoints.sam3_tensors import TRUNK_PREFIX
from efficientsam3.merge.account import MergeAccount, account_for
from efficientsam3.merge.hf_directory import HF_DIRECTORY, write_hf_directory
from efficientsam3.merge.inputs import Sam3Input, StudentInput, check_output
from efficientsam3.merge.native_file import check_native_output, write_native_file
from efficientsam3.models.fuse import fuse_modules
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.own_files import check_folder
from efficientsam3.sam3.contents import Contents, read_contents
from efficientsam3.sam3.parts import PARTS, VISUAL_PROMPT_KEY, Part, part_of

# Largest difference that fusing may make, relative to the embedding's largest value.
TOLERANCE = 1e-4


def fuse(model: Path, output: Path, overwrite: bool = False) -> MergeAccount:
    """Write an EfficientSAM3 with its student fused, verified before it replaces what was at `output`.

    Args:
        model: an EfficientSAM3, a native file or a Hugging Face directory.
        output: the same kind; next to a native file, `<output>.json` and `<output>.md` are written too.
        overwrite: whether to replace files that the program did not write.

    Raises:
        UserError: the model holds no student, or a fused one; or the output cannot be written.
    """
    check_output(output, (model,))
    if model.is_dir():
        check_folder(output, HF_DIRECTORY, overwrite)
    else:
        check_native_output(output, overwrite)
    contents = read_contents(model)
    student, note = fuse_student(_student_of(contents))
    native = None if model.is_dir() else read_tensors(model, values=False)  # compared above
    sam3 = Sam3Input(model, replace(contents, native=native))
    parts = _parts_of(native)
    account = account_for(output, "hf" if native is None else "native", student, sam3, parts, TRUNK_PREFIX)
    account.removed = "the student before fusing"
    account.notes.append(note)
    if native is None:
        write_hf_directory(output, student, sam3, None, account, overwrite)
    else:
        write_native_file(output, student, sam3, (STUDENT_PREFIX, TRUNK_PREFIX), parts, None, account, overwrite)
    return account


def _parts_of(native: StateDict | None) -> frozenset[Part]:
    """The parts of SAM3 in a native file; a Hugging Face directory (None) has all of them."""
    if native is None:
        return frozenset(PARTS)
    outside = (key for key in native if key != VISUAL_PROMPT_KEY and not key.startswith(TRUNK_PREFIX))
    return frozenset(part_of(key) for key in outside)


def _student_of(contents: Contents) -> StudentInput:
    config = contents.config.detector_config.vision_config.backbone_config
    state = {
        key.removeprefix(HF_STUDENT_PREFIX): value
        for key, value in contents.tensors.items()
        if key.startswith(HF_STUDENT_PREFIX)
    }
    if not state:
        raise UserError(f"{contents.path} holds SAM3's own trunk and no student: give a merged EfficientSAM3.")
    return StudentInput(contents.path, state, config.architecture, contents.preprocessing)


@torch.inference_mode()
def fuse_student(student: StudentInput) -> tuple[StudentInput, str]:
    """Fuse a student, and compare its embedding of noise before and after.

    Returns:
        the fused student, and a note for the user.

    Raises:
        UserError: the student is fused already, or fusing changes its embedding by more than rounding.
    """
    if student.architecture.fused:
        raise UserError(f"The student in {student.path} is fused already: use it as it is.")
    plain, side = student.build(), student.architecture.image_size
    shape = (1, 3, side, side)
    fused = fuse_modules(plain, shape)
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(side))
    expected = plain(pixels)
    difference = float((fused(pixels) - expected).abs().max() / expected.abs().max())
    if not difference <= TOLERANCE:
        raise UserError(
            f"Fusing changes the embedding of the student in {student.path} by {difference:.1e} of its largest value, "
            f"more than {TOLERANCE:g}: merge without --fuse, and report this student."
        )
    state, tensors = fused.state_dict(), len(student.state)
    architecture = replace(student.architecture, fused=True)
    note = f"The student is fused, {tensors} tensors into {len(state)}; its embedding differs by {difference:.1e}."
    return replace(student, state=state, architecture=architecture), note
