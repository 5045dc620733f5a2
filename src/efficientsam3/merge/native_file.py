"""A model as one file in Meta's layout, and its metadata and model card in files next to it."""

from pathlib import Path

import torch

from efficientsam3.checkpoints.reading import StateDict
from efficientsam3.checkpoints.sam3_keys import TEXT_PREFIX
from efficientsam3.checkpoints.sam3_tensors import TRUNK_PREFIX
from efficientsam3.checkpoints.text_keys import to_native_text
from efficientsam3.checkpoints.writing import save_tensors
from efficientsam3.merge.account import MergeAccount, neck_replacements
from efficientsam3.merge.card import model_card, model_metadata
from efficientsam3.merge.inputs import Sam3Input, StudentInput
from efficientsam3.merge.verify import fingerprints, verify_necks, verify_student, verify_text, verify_written
from efficientsam3.models.student_files import to_published_layout
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import to_json
from efficientsam3.runtime.own_files import check_files, own_path, write_own_text
from efficientsam3.sam3.contents import metadata_path
from efficientsam3.sam3.parts import VISUAL_PROMPT_KEY, Part, part_of
from efficientsam3.sam3.text import compute_visual_prompt

MERGED_MODEL = "a merged model"


def write_native_file(
    output: Path,
    student: StudentInput,
    sam3: Sam3Input,
    prefixes: tuple[str, str],
    parts: frozenset[Part],
    dtype: torch.dtype | None,
    account: MergeAccount,
    overwrite: bool = False,
) -> None:
    """Write the file, verified before it replaces what was there.

    Args:
        output: the file.
        student: takes the trunk's place.
        sam3: a SAM3, or an EfficientSAM3 whose student is replaced; under Meta's keys.
        prefixes: where the student's keys go, and which of SAM3's keys it replaces.
        parts: the parts of SAM3 to keep.
        dtype: dtype of all floating-point weights; None leaves each as it is.
        account: gets the file's size and SHA-256.
        overwrite: whether to replace files that the program did not write.

    Raises:
        UserError: a file cannot be written, or was read back differently, or the program did not write what is there.
    """
    merged = _assemble(student, sam3, prefixes, parts, dtype)
    expected = fingerprints(merged, sam3.path)
    metadata = model_metadata(student, sam3, parts, dtype)
    with own_path(output, MERGED_MODEL, overwrite) as temporary:
        account.sha256 = save_tensors(temporary, merged, output)
        del merged  # the source's mapping counts as memory
        verify_written(temporary, expected)
        verify_student(temporary, student, dtype, prefixes[0])
        verify_necks(temporary, student, sam3, parts, dtype)
        verify_text(temporary, student, dtype)
        account.bytes = temporary.stat().st_size
    metadata |= {"bytes": account.bytes, "sha256": account.sha256}
    write_own_text(metadata_path(output), to_json(metadata), MERGED_MODEL, overwrite)
    write_own_text(_card_path(output), model_card(output.name, metadata, account), MERGED_MODEL, overwrite)


def check_native_output(output: Path, overwrite: bool) -> None:
    """Check that a native file and what is written beside it replace nothing of the user's.

    Raises:
        UserError: `output` is a folder, or the program did not write what is there; the first files are named.
    """
    if output.is_dir():
        raise UserError(f"The output {output} is a folder: give a file name, such as {output / 'efficient_sam3.pt'}.")
    check_files((output, metadata_path(output), _card_path(output)), MERGED_MODEL, overwrite)


def _card_path(output: Path) -> Path:
    return output.with_name(output.name + ".md")


def _assemble(
    student: StudentInput,
    sam3: Sam3Input,
    prefixes: tuple[str, str],
    parts: frozenset[Part],
    dtype: torch.dtype | None,
) -> StateDict:
    """The merged state dict in the source's order, with the student in the trunk's place, and trained necks."""
    target_prefix, replace_prefix = prefixes
    assert sam3.native is not None
    state, backbone = student.state, student.architecture.backbone
    # A fused student has tensors that the published layout has no names for.
    published = state if student.architecture.fused else to_published_layout(state, backbone)
    necks = {key: value for state in neck_replacements(student, sam3, parts).values() for key, value in state.items()}
    merged: StateDict = {}
    for key, value in sam3.native.items():
        if key.startswith(replace_prefix):
            merged |= {target_prefix + name: tensor for name, tensor in published.items()}
        elif student.text is not None and part_of(key) == "text":
            merged |= {TEXT_PREFIX + name: tensor for name, tensor in to_native_text(student.text.state).items()}
        elif part_of(key) in parts or key.startswith(TRUNK_PREFIX):
            if key.startswith(target_prefix):
                raise UserError(f"{key} is in SAM3 and would be mixed with the student: change --target-prefix.")
            merged[key] = necks.get(key, value)
    if "text" not in parts and "image" in parts:
        kept = sam3.contents.visual_prompt
        merged[VISUAL_PROMPT_KEY] = compute_visual_prompt(sam3.contents) if kept is None else kept
    if dtype is None:
        return merged
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in merged.items()}
