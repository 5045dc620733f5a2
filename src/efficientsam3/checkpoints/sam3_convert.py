"""Applying the table in `sam3_keys`: a plan from the keys alone, and the tensors that follow from it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache

import torch

from efficientsam3.checkpoints.sam3_keys import IGNORED, SCOPES, Renames
from efficientsam3.runtime.errors import UserError


class Change(Enum):
    """What happens to the values of a source tensor. The texts are what the account prints."""

    COPY = "copied"
    SPLIT = "split in query, key and value"
    DROP_CLASS_TOKEN = "class token dropped"
    TRANSPOSE = "transposed"
    STACK = "stacked to one table"


@dataclass(frozen=True)
class Step:
    """Sources to targets: one to one but for SPLIT (1 to 3), STACK (n to 1) and COPY to two places."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    change: Change = Change.COPY


@dataclass
class Plan:
    """The account of a conversion: every source key is in one of the two."""

    steps: list[Step] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)  # key -> reason

    @property
    def targets(self) -> list[str]:
        """Every key that the conversion fills."""
        return [target for step in self.steps for target in step.targets]


_FUSED = re.compile(r"(.*\.)(?:in_proj_|qkv\.)(weight|bias)")
_POSITIONS = "pe_layer.positional_encoding_gaussian_matrix"
_POINT_ROW = re.compile(r"(.*\.)point_embeddings\.(\d+)\.weight")


def plan_conversion(keys: Iterable[str]) -> Plan:
    """Where each key of a native SAM3 goes.

    Raises:
        UserError: a key that the table does not know.
    """
    plan = Plan()
    point_rows: dict[str, dict[int, str]] = {}
    for key in keys:
        reason = next((reason for pattern, reason in IGNORED if re.fullmatch(pattern, key)), None)
        if reason is not None:
            plan.ignored[key] = reason
            continue
        target = rename(key)
        row = _POINT_ROW.fullmatch(target)
        if row is None:
            plan.steps.append(_step(key, target))
        else:
            point_rows.setdefault(row[1] + "point_embed.weight", {})[int(row[2])] = key
    for target, rows in point_rows.items():
        plan.steps.append(Step(tuple(rows[index] for index in sorted(rows)), (target,), Change.STACK))
    return plan


def _step(source: str, target: str) -> Step:
    fused = _FUSED.fullmatch(target)
    if fused is not None:
        return Step((source,), tuple(f"{fused[1]}{part}_proj.{fused[2]}" for part in "qkv"), Change.SPLIT)
    if target.endswith(".position_embeddings"):
        return Step((source,), (target,), Change.DROP_CLASS_TOKEN)
    if target.endswith(".text_encoder.text_projection.weight"):
        return Step((source,), (target,), Change.TRANSPOSE)
    if target.endswith(_POSITIONS):
        prefix = target.removesuffix("prompt_encoder." + _POSITIONS)
        places = ("prompt_encoder.shared_embedding", "shared_image_embedding")
        return Step((source,), tuple(f"{prefix}{place}.positional_embedding" for place in places))
    return Step((source,), (target,))


def rename(key: str) -> str:
    """The target of one key by the table alone, before any transformation.

    Raises:
        UserError: no scope of the table has it.
    """
    for pattern, target, renames in _scopes():
        found = pattern.match(key)
        if found is not None:
            inner = rename_parts(key[found.end() :], renames)
            return (target.replace("#", found[1]) if "#" in target else target) + inner
    raise UserError(f"{key} is not a tensor of SAM3: give a checkpoint in sam3.pt's own layout.")


@cache
def _scopes() -> list[tuple[re.Pattern[str], str, Renames]]:
    return [
        (re.compile(re.escape(source).replace(r"\#", r"(\d+)")), target, renames) for source, target, renames in SCOPES
    ]


def rename_parts(name: str, renames: Renames) -> str:
    """Replace whole dotted parts, each position at most once, earlier entries first."""
    if not renames:
        return name
    pattern = "|".join(re.escape(old) for old in renames)
    return re.sub(rf"(?<![^.])(?:{pattern})(?![^.])", lambda found: renames[found[0]], name)


def apply_step(step: Step, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The target tensors of one step; views of the source where that is possible."""
    source = tensors[step.sources[0]]
    match step.change:
        case Change.COPY:
            return dict.fromkeys(step.targets, source)
        case Change.SPLIT:
            return dict(zip(step.targets, source.chunk(3), strict=True))
        case Change.DROP_CLASS_TOKEN:
            return {step.targets[0]: source[:, 1:]}
        case Change.TRANSPOSE:
            return {step.targets[0]: source.T}
        case Change.STACK:
            return {step.targets[0]: torch.cat([tensors[key] for key in step.sources])}


def convert(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of a native SAM3, or of a part of it, under facebook/sam3's keys.

    Raises:
        UserError: a key that the table does not know.
    """
    converted: dict[str, torch.Tensor] = {}
    for step in plan_conversion(tensors).steps:
        converted |= apply_step(step, tensors)
    return converted
