"""Putting a student in the place of SAM3's image trunk: SAM3 in, EfficientSAM3 out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from efficientsam3.checkpoints.sam3_keys import STUDENT_PREFIX
from efficientsam3.checkpoints.sam3_tensors import TRUNK_PREFIX
from efficientsam3.merge.account import MergeAccount, account_for
from efficientsam3.merge.fuse import fuse_student
from efficientsam3.merge.hf_directory import HF_DIRECTORY, write_hf_directory
from efficientsam3.merge.inputs import StudentInput, check_output, read_fitting_student, read_fitting_text, read_sam3
from efficientsam3.merge.native_file import check_native_output, write_native_file
from efficientsam3.merge.request import MergeRequest
from efficientsam3.models.text_students import MOST_TOKENS, Padding
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.own_files import check_folder
from efficientsam3.runtime.request import make_request
from efficientsam3.sam3.parts import PARTS, Part, parse_parts


def merge(student_ckpt: Path, sam3_ckpt: Path, output: Path, **options: Any) -> MergeAccount:
    """Write an EfficientSAM3, verified before it replaces what was at `output`.

    Args:
        student_ckpt: a student in any form that `read_student` takes.
        sam3_ckpt: native `sam3.pt`, or (for `format="hf"`) a Hugging Face directory in facebook/sam3's layout.
        output: a file, or a directory for `format="hf"`.
        options: the other fields of `MergeRequest`; `dtype` may also be a `torch.dtype`.

    Raises:
        UserError: an input is broken or does not fit, or the output cannot be written. Nothing is left behind then.
    """
    fields = {"student_ckpt": student_ckpt, "sam3_ckpt": sam3_ckpt, "output": output}
    return run_merge(make_request(MergeRequest, fields | options))


def run_merge(request: MergeRequest) -> MergeAccount:
    """Do what a request asks for; see `merge`."""
    output, prefixes = request.output, (request.target_prefix, request.replace_prefix)
    parts = parse_parts(request.keep)
    texts = () if request.text_ckpt is None else (request.text_ckpt,)
    check_output(output, (request.student_ckpt, request.sam3_ckpt, *texts))
    if texts and "text" not in parts:
        raise UserError("--text-ckpt needs the part text: add it to --keep, or leave the text student out.")
    if request.format == "hf":
        check_folder(output, HF_DIRECTORY, request.overwrite)
    else:
        check_native_output(output, request.overwrite)
    sam3 = read_sam3(request.sam3_ckpt)
    student = read_fitting_student(request.student_ckpt, sam3)
    if request.text_ckpt is not None:
        student = replace(student, text=read_fitting_text(request.text_ckpt, sam3))
    if request.format == "hf":
        _check_hf_options(parts, prefixes)
        _check_hf_text(student)
    elif sam3.native is None:
        raise UserError(
            f"{request.sam3_ckpt} lacks tensors of Meta's layout, which transformers has no use for: give sam3.pt."
        )
    note = None
    if request.fuse:
        student, note = fuse_student(student)
    account = account_for(output, request.format, student, sam3, parts, request.replace_prefix)
    account.notes += [] if note is None else [note]
    if prefixes != (STUDENT_PREFIX, TRUNK_PREFIX):
        account.notes.append("With these prefixes, only code that knows them can read the file.")
    if request.dry_run:
        return account
    dtype: torch.dtype | None = getattr(torch, request.dtype) if request.dtype else None
    if request.format == "hf":
        write_hf_directory(output, student, sam3, dtype, account, request.overwrite)
    else:
        write_native_file(output, student, sam3, prefixes, parts, dtype, account, request.overwrite)
    return account


def _check_hf_text(student: StudentInput) -> None:
    """transformers' processor fills 32 positions with the end token, and masks them; nothing tells it otherwise."""
    wanted: tuple[int, Padding] = (MOST_TOKENS, "transformers")
    if student.text is None:
        return
    found = student.text.architecture.context_length, student.text.architecture.padding
    if found != wanted:
        raise UserError(
            f"The text student in {student.text.path} takes {found[0]} tokens, padded as {found[1]}, and transformers' "
            f"processor gives {wanted[0]}, padded as {wanted[1]}: merge it with --format native, or train it for that."
        )


def _check_hf_options(parts: frozenset[Part], prefixes: tuple[str, str]) -> None:
    if parts != frozenset(PARTS):
        raise UserError("--keep needs --format native: transformers' classes need every part of SAM3.")
    if prefixes != (STUDENT_PREFIX, TRUNK_PREFIX):
        raise UserError("--target-prefix and --replace-prefix need --format native: leave them out with hf.")
