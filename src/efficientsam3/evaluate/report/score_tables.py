"""Scores as a table for a terminal."""

from collections.abc import Sequence

from rich.table import Table

from efficientsam3.evaluate.masks.scores import SIZES, Summary
from efficientsam3.runtime.tables import plain_table

COLUMNS = ["model", "prompt", "objects", "mIoU", *SIZES, "agreement"]
CAPTION = (
    "mIoU: mean over objects of the IoU with the true mask; small, medium, large: below 32², below 96², and from 96² "
    "pixels. Agreement: mean IoU with the first model's masks."
)


def score_table(summaries: Sequence[Summary], images: int) -> Table:
    """One row for each model and prompt, in the order given."""
    table = plain_table(f"Masks of {images} images", COLUMNS, CAPTION)
    for summary in summaries:
        table.add_row(*score_row(summary))
    return table


def score_row(summary: Summary) -> list[str]:
    """The cells of `COLUMNS`."""
    by_size = [figure(summary.by_size[size]) for size in SIZES]
    return [
        summary.model,
        summary.prompt,
        str(summary.objects),
        figure(summary.miou),
        *by_size,
        figure(summary.agreement),
    ]


def figure(value: float | None) -> str:
    """Three digits after the point, or a dash where there is nothing to average."""
    return "-" if value is None else f"{value:.3f}"
