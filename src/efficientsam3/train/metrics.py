"""Reading what a training has written about its epochs."""

import json
from pathlib import Path

from efficientsam3.runtime.errors import UserError


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read a training's `metrics.jsonl`: one JSON object of numbers for each epoch, in order.

    Raises:
        UserError: the file is missing, empty, or a line is not an object of numbers with an `epoch`.
    """
    lines, damage = salvage_metrics(path)
    if damage:
        raise UserError(f"{damage[0]}: give the metrics.jsonl of a training.")
    if not lines:
        raise UserError(f"Metrics {path} is empty: wait for the training's first epoch to end.")
    return lines


def salvage_metrics(path: Path) -> tuple[list[dict[str, float]], list[str]]:
    """The lines of a `metrics.jsonl` that are an epoch's figures, and what is wrong with each of the others.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"Metrics {path} cannot be read ({error.strerror}): give the metrics.jsonl of a training, or move away "
            "what is there."
        ) from error
    lines: list[dict[str, float]] = []
    damage: list[str] = []
    for number, text in enumerate(content.splitlines(), start=1):
        parsed = _parse(text)
        if isinstance(parsed, str):
            damage.append(f"{path}, line {number} {parsed}")
        else:
            lines.append(parsed)
    return lines, damage


def _parse(text: bytes) -> dict[str, float] | str:
    """An epoch's figures, or what is wrong with the line."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return "is not JSON"
    if not isinstance(record, dict) or "epoch" not in record:
        return "is not an epoch's metrics"
    if not all(isinstance(value, int | float) for value in record.values()):
        return "holds values that are not numbers"
    if record["epoch"] < 0 or record["epoch"] % 1:  # NaN where it is not finite
        return "is not an epoch's metrics"
    return record
