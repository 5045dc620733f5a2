"""Line charts as SVG that follows the page's colours."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from efficientsam3.evaluate.masks.text_scores import TextSummary
from efficientsam3.evaluate.report.figures import Metrics

_WIDTH, _HEIGHT = 320, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 8, 8, 20  # around the drawing, in the SVG's units


@dataclass(frozen=True)
class Line:
    """One line of a chart, its corners in the SVG's units."""

    label: str
    points: str  # "x,y x,y ...", as SVG's polyline has them


@dataclass(frozen=True)
class Chart:
    """What the template draws."""

    title: str
    lines: list[Line]
    ticks: list[tuple[float, str]]  # height in the SVG's units, label
    ends: tuple[str, str]  # of the horizontal axis: first and last epoch
    axis: str = "epoch"
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT
    right: int = _WIDTH - _RIGHT
    bottom: int = _HEIGHT - _BOTTOM


def metric_charts(runs: Mapping[str, Sequence[Metrics]]) -> list[Chart]:
    """One chart for each metric, `train/loss` and `val/loss` in one; a line for each run and split.

    Args:
        runs: by name, the epochs of each, as `read_metrics` gives them.
    """
    series: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for run, epochs in runs.items():
        for record in epochs:
            for name, value in record.items():
                split, slash, metric = name.partition("/")
                if slash and math.isfinite(value):
                    label = split if len(runs) == 1 else f"{run} {split}"
                    series.setdefault(metric, {}).setdefault(label, []).append((record["epoch"], value))
    return [_chart(metric, lines) for metric, lines in series.items()]


def calibration_chart(texts: Sequence[TextSummary]) -> Chart:
    """How often phrases are in their image, over the predicted presence; the diagonal is what a calibrated one has."""
    series: dict[str, list[tuple[float, float]]] = {"calibrated": [(0.0, 0.0), (1.0, 1.0)]}
    for text in texts:
        if text.calibration is not None:
            bins = zip(text.calibration.predicted, text.calibration.present, strict=True)
            series[text.model] = [(x, y) for x, y in bins if x is not None and y is not None]
    return replace(_chart("phrases that are in their image", series), axis="predicted presence")


def _chart(title: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> Chart:
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    bottom, top = min(0.0, *ys), max(0.0, *ys)
    top = top if top > bottom else bottom + 1
    first, last = min(xs), max(xs)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first) if last > first else 0.5
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _TOP + (top - y) / (top - bottom) * (_HEIGHT - _TOP - _BOTTOM),
        )

    drawn = [
        Line(label, " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points))
        for label, points in lines.items()
    ]
    ticks = [(place(first, value)[1], f"{value:.3g}") for value in (bottom, (bottom + top) / 2, top)]
    return Chart(title, drawn, ticks, (f"{first:g}", f"{last:g}"))
