"""Scores as tables, for a terminal and the report."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from efficientsam3.evaluate.masks.explain import Explanation, conclusions
from efficientsam3.evaluate.masks.scores import SIZES, Interval, Summary
from efficientsam3.evaluate.masks.text_scores import TextSummary
from efficientsam3.runtime.tables import plain_table


@dataclass(frozen=True)
class ScoreTable:
    """One table, a row for each model and prompt."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    caption: str

    def for_terminal(self) -> Table:
        """The same for a terminal."""
        table = plain_table(self.title, self.columns, self.caption)
        table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"  # so that figures are never cut off
        for row in self.rows:
            table.add_row(*row)
        return table


def score_tables(summaries: Sequence[Summary], images: int) -> list[ScoreTable]:
    """The shares of the teacher's mIoU, and by size; rows in the order given."""
    shares = [
        [
            _share(row.share, row.share_interval),
            figure(row.miou) + _span(row.interval, "{:.2f}"),
            percent(row.from_zeros),
        ]
        for row in summaries
    ]
    sizes = [[*(figure(row.by_size[size]) for size in SIZES), figure(row.agreement)] for row in summaries]
    return [
        ScoreTable(
            f"Masks of {images} images",
            ["model", "prompt", "of teacher", "mIoU", "from zeros"],
            [[row.model, row.prompt, *cells] for row, cells in zip(summaries, shares, strict=True)],
            "Of teacher: the share of the first model's mIoU. mIoU: mean over objects of the IoU with the true mask. "
            "In brackets: the 95 % interval over images, by bootstrap. From zeros: the share of the way from an "
            "embedding of zeros, which shows what the prompt alone is worth, to the first model.",
        ),
        ScoreTable(
            "mIoU by size of the object",
            ["model", "prompt", "objects", *SIZES, "agreement"],
            [[row.model, row.prompt, str(row.objects), *cells] for row, cells in zip(summaries, sizes, strict=True)],
            "Small, medium, large: below 32², below 96², and from 96² pixels. Agreement: mean IoU with the first "
            "model's masks.",
        ),
    ]


def text_table(texts: Sequence[TextSummary]) -> ScoreTable:
    """What text prompts find; a row for each model."""
    rows = []
    for text in texts:
        error = None if text.calibration is None else text.calibration.error
        cells = [percent(text.positive_f1), figure(text.mcc), percent(text.recall), percent(text.precision)]
        rows.append([text.model, _share(text.cgf1, text.interval), *cells, percent(text.agreement), figure(error)])
    first = texts[0]
    return ScoreTable(
        f"Text: {first.pairs} phrases of images, {first.positives} of them in their image",
        ["model", "cgF1", "pmF1", "MCC", "recall", "precision", "agreement", "ECE"],
        rows,
        "cgF1 (SA-Co): pmF1, the F1 of masks in images that have the phrase, times MCC, Matthews' correlation of "
        "finding something with its being there. Recall and precision: of masks, negatives included. All are means "
        "over the IoU thresholds 0.5 to 0.95. Agreement: the F1 with the first model's masks. ECE: how far the "
        "predicted presence is from the facts.",
    )


def calibration_table(texts: Sequence[TextSummary]) -> ScoreTable:
    """The predicted presence against the facts; a row for each model and bin that is not empty."""
    rows = [
        [text.model, str(count), figure(predicted), figure(present)]
        for text in texts
        if text.calibration is not None
        for count, predicted, present in zip(
            text.calibration.counts, text.calibration.predicted, text.calibration.present, strict=True
        )
        if count
    ]
    return ScoreTable(
        "Presence",
        ["model", "phrases", "predicted", "in the image"],
        rows,
        "Phrases by predicted presence, in bins.",
    )


def explanation_tables(explanation: Explanation) -> list[ScoreTable]:
    """What the parts carry, a table for each kind of prompt."""
    return [
        ScoreTable(
            f"What carries the gap, by {gap.prompt}",
            ["part", "repaired", "damaged", "of the gap", "of the error"],
            [
                [
                    f"{row.family}: {row.part}",
                    figure(row.repaired),
                    figure(row.damaged),
                    _share(row.share, row.interval),
                    percent(row.error),
                ]
                for row in explanation.parts
                if row.prompt == gap.prompt
            ],
            f"{caption} Repaired: the student's mIoU with this part of the teacher's features; damaged: the teacher's "
            "with the student's. Of the gap: what the one gains and the other loses, in the mean; parts interact, so "
            "that those of one kind need not add up to 100 %. Of the error: the part's share of the squared difference "
            "of the embeddings. Channels are in groups by their error over the teacher's variance.",
        )
        for gap, caption in zip(explanation.gaps, conclusions(explanation), strict=True)
    ]


def figure(value: float | None) -> str:
    """Three digits after the point, or a dash where there is nothing to average."""
    return "-" if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A share with one digit after the point, or a dash."""
    return "-" if value is None else f"{100 * value:z.1f} %"


def _share(value: float | None, interval: Interval | None) -> str:
    """A share with its interval, in per cent."""
    return percent(value) + _span(interval and (100 * interval[0], 100 * interval[1]), "{:z.0f}")


def _span(interval: Interval | None, form: str) -> str:
    return "" if interval is None else f" ({form.format(interval[0])} to {form.format(interval[1])})"
