"""Figures of a distillation: teacher and student features side by side, and the losses over the epochs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from efficientsam3.runtime.files import atomic_path

Array = npt.NDArray[np.floating[Any]]
Metrics = Mapping[str, float]  # one epoch: "epoch", "train/loss", "val/loss", ...

_INCHES = 3.0  # width of one panel
_TITLE = 0.12  # height of a panel's title, in widths
_DPI = 120
_SHOWN_PERCENT = (1.0, 99.0)  # outliers beyond these percentiles of the teacher's colours are clipped
_SPLITS = {"train": "training", "val": "validation"}


@dataclass(frozen=True)
class FeaturePair:
    """Both encoders' features of one image."""

    image: npt.NDArray[np.uint8]  # (h, w, 3) RGB, as the encoders see it or as in the file
    size: tuple[int, int]  # height and width in the file, before it was resized for the encoders
    teacher: Array  # (D, h, w), whose cells cover the image and no padding
    student: Array  # (D, h, w)


class FeatureColours:
    """The three directions of largest variance in a teacher's features, as red, green and blue.

    Follows DINOv2 (Oquab et al. 2023, figure 1). The scale is the teacher's, so a student's colours agree with the
    teacher's only where the features do, in direction and in size.
    """

    def __init__(self, features: Sequence[Array]) -> None:
        """Fit to maps of shape (D, h, w), all of the same D >= 3."""
        cells = np.concatenate([_cells(array) for array in features])
        self._mean = cells.mean(axis=0)
        _, directions = np.linalg.eigh(np.cov(cells, rowvar=False))
        largest = directions[:, :-4:-1]
        # An eigenvector's sign is arbitrary: fix it, so that a figure does not change with the linear algebra library.
        signs = np.sign(largest[np.abs(largest).argmax(axis=0), range(3)])
        self._directions = largest * signs  # [D, 3]
        self._low, self._high = np.percentile(self._project(cells), _SHOWN_PERCENT, axis=0)

    def __call__(self, features: Array) -> Array:
        """(D, h, w) features to (h, w, 3) colours in [0, 1]."""
        spread = np.maximum(self._high - self._low, np.finfo(np.float64).eps)
        colours = np.clip((self._project(_cells(features)) - self._low) / spread, 0, 1)
        image: Array = colours.reshape(*features.shape[1:], 3)
        return image

    def _project(self, cells: Array) -> Array:
        projected: Array = (cells - self._mean) @ self._directions
        return projected


def cosine_similarity(teacher: Array, student: Array) -> float:
    """Mean over the cells of two (D, h, w) maps of the cosine between their features, in [-1, 1]."""
    a, b = _cells(teacher), _cells(student)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean((a * b).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).eps)))


def feature_figure(pairs: Sequence[FeaturePair]) -> Figure:
    """One row for each image: itself, the teacher's features and the student's, in common colours."""
    colours = FeatureColours([pair.teacher for pair in pairs])
    heights = [height / width for height, width in (pair.size for pair in pairs)]
    size = (3 * _INCHES, (sum(heights) + len(pairs) * _TITLE) * _INCHES)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    grid = figure.subplots(len(pairs), 3, squeeze=False, height_ratios=heights)
    for row, pair in zip(grid, pairs, strict=True):
        height, width = pair.size
        similarity = cosine_similarity(pair.teacher, pair.student)
        panels = (
            ("image", pair.image),
            ("teacher", colours(pair.teacher)),
            (f"student (cosine {similarity:.2f})", colours(pair.student)),
        )
        for axes, (title, image) in zip(row, panels, strict=True):
            # Pixels and cells are stretched, which undoes the squashing.
            axes.imshow(image, extent=(0, width, height, 0), interpolation="nearest")
            axes.set_title(title)
            axes.set_axis_off()
    return figure


def loss_figure(epochs: Sequence[Metrics]) -> Figure:
    """Each loss that was recorded over the epochs, training and validation.

    Args:
        epochs: one mapping for each, with `epoch` and `{train,val}/NAME` for each loss.
    """
    names = list(dict.fromkeys(name for record in epochs for key in record for name in _losses(key)))
    figure = Figure(figsize=(len(names) * 1.3 * _INCHES, 1.1 * _INCHES), dpi=_DPI, layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        _draw_curve(axes, epochs, name)
        axes.set(title=name, xlabel="epoch")
    return figure


def _losses(key: str) -> list[str]:
    split, _, name = key.partition("/")
    return [name] if split in _SPLITS else []


def _draw_curve(axes: Axes, epochs: Sequence[Metrics], name: str) -> None:
    for split, label in _SPLITS.items():
        points = [(record["epoch"], record[f"{split}/{name}"]) for record in epochs if f"{split}/{name}" in record]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, whole or not at all.

    Raises:
        UserError: the folder cannot be written to.
    """
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _cells(features: Array) -> Array:
    flat: Array = np.asarray(features, dtype=np.float64).reshape(features.shape[0], -1).T
    return flat  # [h * w, D]
