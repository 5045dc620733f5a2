"""The account of a merge: where every tensor went, and what was written."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from efficientsam3.checkpoints.necks import NECK_PREFIXES, NeckName, neck_names
from efficientsam3.checkpoints.reading import StateDict
from efficientsam3.checkpoints.sam3_convert import plan_conversion, rename
from efficientsam3.checkpoints.sam3_keys import HF_TRUNK_PREFIX, NATIVE_NECKS, TEXT_PREFIX
from efficientsam3.checkpoints.text_keys import HF_TEXT_PREFIXES, to_native_text
from efficientsam3.merge.inputs import Sam3Input, StudentInput, preprocessing_note
from efficientsam3.merge.request import Format
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.parts import PARTS, Part, part_of


@dataclass
class MergeAccount:
    """What a merge did, or would do. Whoever writes the output sets `bytes` and, for a file, `sha256`."""

    output: Path
    format: str
    backbone: str
    student_tensors: int
    student_parameters: int
    removed_tensors: int
    removed_parameters: int
    removed: str = "SAM3's image trunk"  # in words
    text: tuple[str, tuple[int, int], tuple[int, int]] | None = None  # a text student; what it replaces, and its size
    replaced: dict[str, tuple[int, int]] = field(default_factory=dict)  # trained neck -> tensors, parameters
    kept: dict[str, tuple[int, int]] = field(default_factory=dict)  # part -> tensors, parameters
    left_out: dict[str, tuple[int, int]] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)  # what happens to values -> how many source tensors
    ignored: dict[str, str] = field(default_factory=dict)  # key -> reason
    notes: list[str] = field(default_factory=list)
    bytes: int | None = None  # None for a dry run
    sha256: str | None = None  # of a native file

    def lines(self) -> list[str]:
        """The account as text."""
        removed, student = _count(self.removed_tensors, self.removed_parameters), self.student_tensors
        lines = [
            f"removed   {removed}: {self.removed}",
            f"inserted  {_count(student, self.student_parameters)}: the student {self.backbone} and its head",
        ]
        if self.text is not None:
            name, own, new = self.text
            lines += [f"removed   {_count(*own)}: SAM3's text encoder"]
            lines += [f"inserted  {_count(*new)}: the text student {name}"]
        lines += [
            f"replaced  {_count(*size)}: the {name}'s neck, by the one that was trained with the student"
            for name, size in self.replaced.items()
        ]
        lines += [f"kept      {_count(*self.kept[part])}: {part}" for part in self.kept]
        lines += [f"left out  {_count(*size)}: {part} ({PARTS[part]})" for part, size in self._left_out()]
        lines += [f"{count:9d} source tensors {change}" for change, count in self.changes.items()]
        lines += [f"ignored   {count} tensors: {reason}" for reason, count in Counter(self.ignored.values()).items()]
        lines += [f"note      {note}" for note in self.notes]
        if self.bytes is None:
            return [*lines, f"dry run: {self.output} was not written"]
        return [*lines, f"wrote     {self.output} ({self.bytes / 1e6:.1f} MB, {self.format}), verified"]

    def _left_out(self) -> list[tuple[Part, tuple[int, int]]]:
        return [(part, self.left_out[part]) for part in PARTS if part in self.left_out]


def _count(tensors: int, parameters: int) -> str:
    return f"{tensors:5d} tensors {parameters / 1e6:8.2f}M parameters"


def sizes_by_part(keys: Mapping[str, torch.Tensor], parts: frozenset[Part], kept: bool) -> dict[str, tuple[int, int]]:
    """Tensors and parameters of each part that is kept, or is not, by native key."""
    sizes: dict[str, tuple[int, int]] = {}
    for key, value in keys.items():
        part = part_of(key)
        if (part in parts) == kept:
            tensors, parameters = sizes.get(part, (0, 0))
            sizes[part] = (tensors + 1, parameters + value.numel())
    return sizes


def conversion_account(keys: Mapping[str, torch.Tensor]) -> tuple[dict[str, int], dict[str, str]]:
    """What a conversion to Hugging Face does to the values of native tensors, and what it ignores and why."""
    plan = plan_conversion(keys)
    changes = Counter[str]()
    for step in plan.steps:
        changes[step.change.value] += len(step.sources)
    return dict(changes), plan.ignored


def account_for(
    output: Path, format: Format, student: StudentInput, sam3: Sam3Input, parts: frozenset[Part], replace_prefix: str
) -> MergeAccount:
    """Account for every tensor of a merge, before anything is written.

    Raises:
        UserError: no tensor is under `replace_prefix`.
    """
    source = sam3.contents.tensors if sam3.native is None else sam3.native
    trunk_prefix = HF_TRUNK_PREFIX if sam3.native is None else replace_prefix
    removed = {key: value for key, value in source.items() if key.startswith(trunk_prefix)}
    if not removed:
        raise UserError(f"--replace-prefix {replace_prefix!r} matches no tensor in {sam3.path}: check it.")
    necks = neck_replacements(student, sam3, parts)
    replaced = {key for state in necks.values() for key in state}
    rest = {key: value for key, value in source.items() if key not in removed and key not in replaced}
    account = MergeAccount(
        output,
        format,
        student.architecture.backbone,
        len(student.state),
        _parameters(student.state),
        len(removed),
        _parameters(removed),
    )
    if student.text is not None:
        prefix = tuple(HF_TEXT_PREFIXES.values()) if sam3.native is None else TEXT_PREFIX
        own = {key: value for key, value in rest.items() if key.startswith(prefix)}
        rest = {key: value for key, value in rest.items() if key not in own}
        new = student.text.state if format == "hf" else to_native_text(student.text.state)
        name = student.text.architecture.backbone
        account.text = (name, (len(own), _parameters(own)), (len(new), _parameters(new)))
    account.replaced = {name: (len(state), _parameters(state)) for name, state in necks.items()}
    if sam3.native is None:
        account.kept = {"everything else": (len(rest), _parameters(rest))}
    else:
        account.kept = sizes_by_part(rest, parts, kept=True)
        account.left_out = sizes_by_part(rest, parts, kept=False)
        if format == "hf":
            account.changes, account.ignored = conversion_account(rest)
    account.notes = _notes(format, student, sam3, parts)
    return account


def neck_replacements(student: StudentInput, sam3: Sam3Input, parts: frozenset[Part]) -> dict[NeckName, StateDict]:
    """The trained necks of the parts that are kept, by the keys of the SAM3 whose tensors they replace."""
    necks: dict[NeckName, StateDict] = {}
    if student.necks is None:
        return necks
    keys = {key: key for key in student.necks.state}
    if sam3.native is not None:
        keys = {rename(key): key for key in sam3.native if key.startswith(NATIVE_NECKS) and part_of(key) in parts}
    for name in neck_names(student.necks.origins):
        trained = {key: value for key, value in student.necks.state.items() if key.startswith(NECK_PREFIXES[name])}
        necks[name] = {keys[key]: value for key, value in trained.items() if key in keys}
    return {name: state for name, state in necks.items() if state}


def _parameters(tensors: StateDict) -> int:
    """Count the numbers in floating-point tensors: rotary tables (complex) and counters are not parameters."""
    return sum(value.numel() for value in tensors.values() if value.is_floating_point())


def _notes(format: Format, student: StudentInput, sam3: Sam3Input, parts: frozenset[Part]) -> list[str]:
    notes = []
    if format == "native" and not student.architecture.is_published:
        notes.append(
            "This student has no published layout: the published loader cannot read the file, efficientsam3 can."
        )
    elif format == "native" and parts != frozenset(PARTS):
        notes.append("With parts left out, the published loader cannot read the file, efficientsam3 can.")
    pixels = preprocessing_note(student, sam3)
    return notes + ([pixels] if pixels else [])
