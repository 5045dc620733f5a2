"""Training checkpoints, written whole or not at all, readable with `weights_only=True`.

`ckpt_epoch_N.pth` is written at the end of 0-based epoch N, `ckpt_step_N.pth` after N optimiser steps, within an epoch.
docs/training.md says what is in them.
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from efficientsam3.checkpoints.fitting import check_finite
from efficientsam3.checkpoints.necks import NecksContent
from efficientsam3.checkpoints.reading import check_tensors, load_pickled
from efficientsam3.checkpoints.writing import save_content
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import atomic_path, require_file
from efficientsam3.runtime.json_files import parse
from efficientsam3.runtime.logging import LOGGER_NAME

logger = logging.getLogger(LOGGER_NAME)
METRICS_NAME = "metrics.jsonl"  # next to the checkpoints: one line for each epoch
_NAME = re.compile(r"ckpt_(epoch|step)_(\d+)\.pth")
_NEEDED = frozenset(
    {"model", "architecture", "optimizer", "scaler", "step", "epoch", "position", "finished", "images"}
    | {"images_per_step", "world_size", "processes", "config"}
)
_State = dict[str, torch.Tensor]
_Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)


class _Optimiser(_Part):
    state: dict[int, _State]
    param_groups: Annotated[list[dict[str, Any]], Field(min_length=1)]


class _Share(_Part):
    random: dict[str, Any]
    sums: _State | torch.Tensor


class _Training(_Part):
    """What a resumed training takes from a checkpoint."""

    model: Annotated[_State, Field(min_length=1)]
    ema: _State | None = None
    necks: NecksContent | None = None
    architecture: dict[str, Any]
    optimizer: _Optimiser
    scaler: dict[str, Any]
    step: _Count
    epoch: _Count
    position: _Count
    skipped: _Count = 0
    skipped_in_a_row: _Count = 0
    finished: bool
    images: _Count
    images_per_step: Annotated[int, Field(gt=0)]
    world_size: Annotated[int, Field(gt=0)]
    processes: Annotated[list[_Share], Field(min_length=1)]
    config: dict[str, Any]


def is_training_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint that says which student it holds, as those of a training do.

    Raises:
        UserError: the file has the name of a checkpoint and cannot be read.
    """
    if path.suffix not in (".pth", ".pt") or not path.is_file():
        return False
    content = load_pickled(path, values=False)
    return isinstance(content, dict) and isinstance(content.get("architecture"), dict)


def checkpoint_path(output_dir: Path, epoch: int) -> Path:
    """The path of the checkpoint that ends a 0-based epoch."""
    return output_dir / f"ckpt_epoch_{epoch}.pth"


def step_checkpoint_path(output_dir: Path, step: int) -> Path:
    """The path of the checkpoint after a number of optimiser steps."""
    return output_dir / f"ckpt_step_{step}.pth"


def latest_checkpoint(output_dir: Path) -> Path | None:
    """The whole checkpoint of the highest step in a folder, or None where there is none.

    A file's name appears only once it is whole, so that a damaged one was damaged later: it is skipped with a
    warning.

    Raises:
        UserError: there are checkpoints, and all of them are damaged.
    """
    found = {kind: _numbered(output_dir, kind) for kind in ("epoch", "step")}
    problems: list[UserError] = []
    newest = [_newest_whole(paths, problems) for paths in found.values()]
    whole = [each for each in newest if each is not None]
    if not whole and problems:
        raise problems[0]
    for problem in problems:
        logger.warning("%s It is skipped.", problem)
    # At one step, the end of the epoch is the further one.
    return max(whole, key=lambda each: (each[0], each[1].name.startswith("ckpt_epoch")))[1] if whole else None


def numbered_checkpoints(output_dir: Path, epoch: int, step: int) -> list[Path]:
    """A folder's checkpoints from an epoch and from a step on, the newest of each kind last, whole or not."""
    kinds = (("step", step), ("epoch", epoch))
    found = {kind: [path for path in _numbered(output_dir, kind) if _number(path) >= first] for kind, first in kinds}
    return [path for kind in found for path in reversed(found[kind])]


def remove_old_checkpoints(output_dir: Path, keep_steps: int, keep_epochs: int, best: Path | None) -> None:
    """Remove checkpoints that newer ones have replaced.

    Args:
        output_dir: of the training.
        keep_steps: how many checkpoints within an epoch to keep; 0 where an epoch's end has just been saved.
        keep_epochs: how many of epochs' ends to keep; 0 keeps all.
        best: one that stays in any case.
    """
    old = _numbered(output_dir, "step")[keep_steps:]
    if keep_epochs:
        old += [path for path in _numbered(output_dir, "epoch")[keep_epochs:] if path != best]
    for path in old:
        path.unlink()


def save_training_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint of tensors, numbers, strings, lists and dicts, atomically.

    Raises:
        UserError: the file cannot be written; what was at `path` is still there.
    """
    with atomic_path(path) as temporary:
        save_content(temporary, content, path)


def load_training_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint that `save_training_checkpoint` wrote, on the CPU.

    Raises:
        UserError: the file is missing, damaged, changed since it was written, or not a training checkpoint of this
            project, or one of its numbers is not finite.
    """
    require_file(path, "Training checkpoint", "give --resume a ckpt_epoch_N.pth or ckpt_step_N.pth of this project")
    content = load_pickled(path, mapped=False)
    missing = _NEEDED - set(content if isinstance(content, dict) else ())
    if missing:
        raise UserError(
            f"{path} is not a training checkpoint of this version (it lacks {', '.join(sorted(missing))}); "
            "to start from its weights, give it as MODEL.PRETRAINED."
        )
    parse(_Training, content, f"Training checkpoint {path}", "use another checkpoint")
    tensors = dict(_tensors_in(content))
    check_tensors(tensors, path)
    check_finite(tensors, path)
    return dict(content)


def _tensors_in(content: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors in nested containers, by the keys that lead to them."""
    if isinstance(content, torch.Tensor):
        yield name, content
    elif isinstance(content, dict | list | tuple):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _tensors_in(value, f"{name}.{key}" if name else str(key))


def _numbered(output_dir: Path, kind: str) -> list[Path]:
    """A folder's checkpoints of one kind, newest first."""
    found = [path for path in output_dir.glob(f"ckpt_{kind}_*.pth") if _NAME.fullmatch(path.name)]
    return sorted(found, key=_number, reverse=True)


def _number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[2])


def _newest_whole(paths: list[Path], problems: list[UserError]) -> tuple[int, Path] | None:
    """Step and path of the first that can be read; what is wrong with those before goes to `problems`."""
    for path in paths:
        try:
            return int(load_training_checkpoint(path)["step"]), path
        except UserError as error:
            problems.append(error)
    return None
