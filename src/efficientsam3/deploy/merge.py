"""Put a student in the place of SAM3's image trunk: SAM3 in, EfficientSAM3 out."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch

from efficientsam3.checkpoints.sam3_keys import STUDENT_PREFIX
from efficientsam3.checkpoints.sam3_tensors import TRUNK_PREFIX
from efficientsam3.checkpoints.student_keys import PUBLISHED_BACKBONES
from efficientsam3.checkpoints.students import to_published_layout
from efficientsam3.checkpoints.writing import save_tensors
from efficientsam3.deploy.card import model_card, model_metadata
from efficientsam3.deploy.contents import metadata_path
from efficientsam3.deploy.hf_directory import write_hf_directory
from efficientsam3.deploy.inputs import (
    Sam3Input,
    StudentInput,
    Tensors,
    check_output,
    preprocessing_note,
    read_fitting_student,
    read_sam3,
)
from efficientsam3.deploy.parts import PARTS, VISUAL_PROMPT_KEY, Part, parse_parts, part_of
from efficientsam3.deploy.report import MergeReport, conversion_account, sizes_by_part
from efficientsam3.deploy.verify import fingerprints, verify_student, verify_written
from efficientsam3.deploy.visual_prompt import compute_visual_prompt
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import atomic_path, write_json, write_text

Format = Literal["native", "hf"]
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
    report = _report(output, format, student, sam3, parts, replace_prefix)
    if (target_prefix, replace_prefix) != (STUDENT_PREFIX, TRUNK_PREFIX):
        report.notes.append("With these prefixes, only code that knows them can read the file.")
    if dry_run:
        return report
    if format == "hf":
        report.bytes = write_hf_directory(output, student, sam3, dtype, report)
    else:
        _write_native(output, student, sam3, (target_prefix, replace_prefix), parts, dtype, report)
    return report


def _check_hf_options(parts: frozenset[Part], prefixes: tuple[str, str]) -> None:
    if parts != frozenset(PARTS):
        raise UserError("--keep needs --format native: transformers' classes have no form without one of the parts.")
    if prefixes != (STUDENT_PREFIX, TRUNK_PREFIX):
        raise UserError("--target-prefix and --replace-prefix need --format native: leave them out with hf.")


def _report(
    output: Path, format: Format, student: StudentInput, sam3: Sam3Input, parts: frozenset[Part], replace_prefix: str
) -> MergeReport:
    source = sam3.contents.tensors if sam3.native is None else sam3.native
    trunk_prefix = "detector_model.vision_encoder.backbone." if sam3.native is None else replace_prefix
    removed = {key: value for key, value in source.items() if key.startswith(trunk_prefix)}
    if not removed:
        raise UserError(f"--replace-prefix {replace_prefix!r} is the start of no tensor in {sam3.path}: check it.")
    rest = {key: value for key, value in source.items() if key not in removed}
    report = MergeReport(
        output,
        format,
        student.architecture.backbone,
        len(student.state),
        _parameters(student.state),
        len(removed),
        _parameters(removed),
    )
    if sam3.native is None:
        report.kept = {"everything else": (len(rest), _parameters(rest))}
    else:
        report.kept = sizes_by_part(rest, parts, kept=True)
        report.left_out = sizes_by_part(rest, parts, kept=False)
        if format == "hf":
            report.changes, report.ignored = conversion_account(rest)
    report.notes = _notes(format, student, sam3, parts)
    return report


def _parameters(tensors: Tensors) -> int:
    """Numbers in floating-point tensors; rotary tables and counters are no parameters."""
    return sum(value.numel() for value in tensors.values() if value.is_floating_point())


def _notes(format: Format, student: StudentInput, sam3: Sam3Input, parts: frozenset[Part]) -> list[str]:
    notes = []
    architecture = student.architecture
    published = architecture.backbone in PUBLISHED_BACKBONES and architecture.head == "published"
    if format == "native" and not published:
        notes.append(
            "This student has no published layout: the published loader cannot read the file, efficientsam3 can."
        )
    elif format == "native" and parts != frozenset(PARTS):
        notes.append("With parts left out, the published loader cannot read the file, efficientsam3 can.")
    pixels = preprocessing_note(student, sam3)
    return notes + ([pixels] if pixels else [])


def _assemble_native(
    student: StudentInput,
    sam3: Sam3Input,
    prefixes: tuple[str, str],
    parts: frozenset[Part],
    dtype: torch.dtype | None,
) -> Tensors:
    """The merged state dict in the source's order, the student where the trunk was."""
    target_prefix, replace_prefix = prefixes
    assert sam3.native is not None
    published = to_published_layout(student.state, student.architecture.backbone)
    merged: Tensors = {}
    for key, value in sam3.native.items():
        if key.startswith(replace_prefix):
            merged |= {target_prefix + name: tensor for name, tensor in published.items()}
        elif part_of(key) in parts or key.startswith(TRUNK_PREFIX):
            if key.startswith(target_prefix):
                raise UserError(f"{key} is in SAM3 and would be mixed with the student: change --target-prefix.")
            merged[key] = value
    if "text" not in parts and "image" in parts:
        merged[VISUAL_PROMPT_KEY] = compute_visual_prompt(sam3.contents)
    if dtype is None:
        return merged
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in merged.items()}


def _write_native(
    output: Path,
    student: StudentInput,
    sam3: Sam3Input,
    prefixes: tuple[str, str],
    parts: frozenset[Part],
    dtype: torch.dtype | None,
    report: MergeReport,
) -> None:
    if output.is_dir():
        raise UserError(f"The output {output} is a folder: give a file name, such as {output / 'efficient_sam3.pt'}.")
    merged = _assemble_native(student, sam3, prefixes, parts, dtype)
    expected = fingerprints(merged, sam3.path)
    metadata = model_metadata(student, sam3, parts, dtype)
    with atomic_path(output) as temporary:
        report.sha256 = save_tensors(temporary, merged, output)
        del merged  # the source's mapping counts as memory
        verify_written(temporary, expected)
        verify_student(temporary, student, dtype, prefixes[0])
        report.bytes = temporary.stat().st_size
    write_json(metadata_path(output), metadata | {"bytes": report.bytes, "sha256": report.sha256})
    write_text(output.with_name(output.name + ".md"), model_card(output.name, metadata, report))
