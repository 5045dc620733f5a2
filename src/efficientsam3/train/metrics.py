"""Reading what a training has written about its epochs."""

import json
from pathlib import Path

from efficientsam3.runtime.errors import UserError


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read a training's `metrics.jsonl`: one JSON object of numbers for each epoch, in order.

    Raises:
        UserError: the file is missing, empty, or a line is not an object of numbers with an `epoch`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Metrics {path} cannot be read ({error}): give the metrics.jsonl of a training.") from error
    if not lines:
        raise UserError(f"Metrics {path} is empty: wait for the training's first epoch to end.")
    return [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _parse(line: str, where: str) -> dict[str, float]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON: give the metrics.jsonl of a training.") from error
    if not isinstance(record, dict) or "epoch" not in record:
        raise UserError(f"{where} is not an epoch's metrics: give the metrics.jsonl of a training.")
    if not all(isinstance(value, int | float) for value in record.values()):
        raise UserError(f"{where} holds values that are not numbers: give the metrics.jsonl of a training.")
    return record
