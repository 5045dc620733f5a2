"""A training's OUTPUT: what earlier runs left there, and what a new one takes over. Nothing of theirs is lost."""

import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficientsam3.checkpoints.training import METRICS_NAME, numbered_checkpoints
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import atomic_path, remove_leftovers
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.train.metrics import salvage_metrics
from efficientsam3.train.objective import Averages

logger = logging.getLogger(LOGGER_NAME)
BEST_NAME = "best.json"
_OURS = re.compile(rf"ckpt_(epoch|step)_\d+\.pth|{re.escape(METRICS_NAME)}|best\.json|config\.json")


@dataclass(frozen=True)
class Earlier:
    """What a new run takes over from earlier ones in the same OUTPUT."""

    lines: list[Averages]  # figures of the epochs that it does not train again
    damage: list[str]  # a sentence for each line that is no epoch's figures
    replaced: list[Path]  # what it sets aside, in that order: what it does not go on from
    copied: list[Path]  # of which it keeps a part, so that a copy is set aside


def find_earlier(output_dir: Path, resumed: Mapping[str, Any] | None, given: Path | None) -> Earlier:
    """Find out what a run takes over, without changing anything.

    Args:
        output_dir: OUTPUT.
        resumed: content of the checkpoint that the run continues from; None at the beginning.
        given: that checkpoint's path where the user named it (`--resume`).

    Raises:
        UserError: metrics.jsonl cannot be read, or is not of the checkpoint that was found.
    """
    path = output_dir / METRICS_NAME
    own = resumed is not None and (given is None or given.resolve().parent == output_dir.resolve())
    if not own:
        return Earlier([], [], _records(output_dir), [])
    assert resumed is not None
    epoch = int(resumed["epoch"]) + bool(resumed["finished"])
    found, damage = salvage_metrics(path) if path.exists() else ([], [])
    lines = [line for line in found if line["epoch"] < epoch]
    if given is not None:
        further = numbered_checkpoints(output_dir, epoch, int(resumed["step"]) + 1)
        changed = [path] if len(lines) < len(found) or damage else []
        best = [output_dir / BEST_NAME] if further and (output_dir / BEST_NAME).exists() else []
        return Earlier(lines, damage, [*further, *best], changed)
    if found and not damage and found[-1]["epoch"] < epoch - 1:
        raise UserError(
            f"{output_dir} has a checkpoint of epoch {epoch - 1}, and {METRICS_NAME} ends at epoch "
            f"{found[-1]['epoch']:g}, as where one training began anew over another: give the checkpoint to continue "
            "from with --resume, or another OUTPUT."
        )
    return Earlier(lines, damage, [], [path] if damage else [])


def take_over(output_dir: Path, earlier: Earlier) -> None:
    """Set aside what the new run does not go on from, and remove what a killed one left half-written.

    Nobody else may be writing there.

    Raises:
        UserError: OUTPUT cannot be written to.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output_dir, _OURS)
    if earlier.damage:
        logger.warning("%s: %d lines are left out", "; ".join(earlier.damage[:3]), len(earlier.damage))
    if not (earlier.replaced or earlier.copied):
        return
    aside = _free_folder(output_dir)
    try:
        aside.mkdir()
        for path in earlier.copied:
            with atomic_path(aside / path.name) as temporary:
                shutil.copyfile(path, temporary)
        # Killed in between, the last checkpoint is still in its place, and the same command begins again.
        for path in earlier.replaced:
            path.rename(aside / path.name)
    except OSError as error:
        raise UserError(f"Cannot write to OUTPUT {output_dir}: {error.strerror}; choose another folder.") from error
    names = ", ".join(path.name for path in (*earlier.replaced, *earlier.copied))
    logger.warning("what an earlier run wrote is kept in %s: %s", aside, names)


def _records(output_dir: Path) -> list[Path]:
    """What an earlier training wrote, the last checkpoint after all others; nothing where it has not come to any."""
    checkpoints = numbered_checkpoints(output_dir, 0, 0)
    metrics = output_dir / METRICS_NAME
    if not checkpoints and not (metrics.exists() and metrics.stat().st_size):
        return []
    others = [output_dir / BEST_NAME, output_dir / "config.json", metrics]
    return [*checkpoints, *_existing(others), *sorted(output_dir.glob("events.out.tfevents.*"))]


def _existing(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.exists()]


def _free_folder(output_dir: Path) -> Path:
    number = 1
    while (folder := output_dir / f"replaced-{number}").exists():
        number += 1
    return folder
