"""Put a student in the place of SAM3's image trunk: SAM3 in, EfficientSAM3 out."""

from collections.abc import Iterable
from pathlib import Path

import torch

from efficientsam3.checkpoints.sam3_keys import STUDENT_PREFIX
from efficientsam3.checkpoints.sam3_tensors import TRUNK_PREFIX
from efficientsam3.merge.account import Format, MergeReport, account
from efficientsam3.merge.fuse import fuse_student
from efficientsam3.merge.hf_directory import write_hf_directory
from efficientsam3.merge.inputs import check_output, read_fitting_student, read_sam3
from efficientsam3.merge.native_file import write_native_file
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.parts import PARTS, Part, parse_parts

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def merge(
    student_ckpt: Path,
    sam3_ckpt: Path,
    output: Path,
    *,
    target_prefix: str = STUDENT_PREFIX,
    replace_prefix: str = TRUNK_PREFIX,
    format: Format = "native",
    dtype: torch.dtype | None = None,
    keep: Iterable[str] = PARTS,
    fuse: bool = False,
    dry_run: bool = False,
) -> MergeReport:
    """Write an EfficientSAM3, verified before it replaces what was at `output`.

    Args:
        student_ckpt: a student in any form that `read_student` takes.
        sam3_ckpt: native `sam3.pt`, or (for `hf`) a Hugging Face directory in facebook/sam3's layout.
        output: a file (`native`; `<output>.json` and `<output>.md` come beside it) or a directory (`hf`).
        target_prefix: where the student's keys go in a native file.
        replace_prefix: which of SAM3's keys the student replaces.
        format: `native` is Meta's and the published EfficientSAM3's layout, `hf` transformers'.
        dtype: of all floating-point weights; None leaves each as it is, bit by bit.
        keep: parts of SAM3 to keep, of image, text, tracker.
        fuse: fuse the student for inference, see `fuse_student`.
        dry_run: check everything and account for every tensor, but write nothing.

    Raises:
        UserError: an input is broken or does not fit, or the output cannot be written. Nothing is left behind then.
    """
    parts = parse_parts(keep)
    check_output(output, (student_ckpt, sam3_ckpt))
    sam3 = read_sam3(sam3_ckpt)
    student = read_fitting_student(student_ckpt, sam3)
    if format == "hf":
        _check_hf_options(parts, (target_prefix, replace_prefix))
    elif sam3.native is None:
        raise UserError(f"{sam3_ckpt} lacks tensors of Meta's layout, which transformers has no use for: give sam3.pt.")
    note = None
    if fuse:
        student, note = fuse_student(student)
    report = account(output, format, student, sam3, parts, replace_prefix)
    report.notes += [] if note is None else [note]
    if (target_prefix, replace_prefix) != (STUDENT_PREFIX, TRUNK_PREFIX):
        report.notes.append("With these prefixes, only code that knows them can read the file.")
    if dry_run:
        return report
    if format == "hf":
        report.bytes = write_hf_directory(output, student, sam3, dtype, report)
    else:
        write_native_file(output, student, sam3, (target_prefix, replace_prefix), parts, dtype, report)
    return report


def _check_hf_options(parts: frozenset[Part], prefixes: tuple[str, str]) -> None:
    if parts != frozenset(PARTS):
        raise UserError("--keep needs --format native: transformers' classes have no form without one of the parts.")
    if prefixes != (STUDENT_PREFIX, TRUNK_PREFIX):
        raise UserError("--target-prefix and --replace-prefix need --format native: leave them out with hf.")
