"""PyTorch and another runtime side by side, graph by graph, on images."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from efficientsam3.export.graphs import Graph
from efficientsam3.export.ports import PIXELS, GraphName
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.geometry import mask_iou
from efficientsam3.sam3.promptable import PADDING_LABEL

Values = dict[str, torch.Tensor]
Array = npt.NDArray[Any]
Run = Callable[[Values], Sequence[Array]]  # a graph's inputs to its outputs
FEATURE_LIMIT = 1e-4
MASK_LIMIT = 0.999  # rounding may turn a pixel at a mask's edge
SCORE_LIMIT = 1e-3  # of scores and boxes in [0, 1]
# Other numbers of prompts than the graphs were traced with; coordinates as fractions of the input.
_BOXES = [
    {"boxes": torch.zeros(1, 1, 4), "box_labels": torch.tensor([[PADDING_LABEL]])},
    {"boxes": torch.tensor([[[0.5, 0.5, 0.5, 0.4], [0.2, 0.3, 0.1, 0.1]]]), "box_labels": torch.tensor([[1, 0]])},
]
_POINTS = [
    {"points": torch.tensor([[[0.5, 0.5]]]), "labels": torch.tensor([[1]])},
    {
        "points": torch.tensor([[[0.5, 0.5], [0.1, 0.2], [0.2, 0.2], [0.8, 0.7]]]),
        "labels": torch.tensor([[1, 0, 2, 3]]),
    },
]


def compare(
    graphs: Sequence[Graph], runs: Mapping[GraphName, Run], images: Iterable[torch.Tensor], phrases: Sequence[Values]
) -> dict[GraphName, dict[str, float]]:
    """Run every graph on what PyTorch gives it, image by image and prompt by prompt.

    Args:
        graphs: in the order in which they run.
        runs: each graph in the other runtime.
        images: (1, 3, S, S) float32, normalised.
        phrases: inputs of the text encoder, or of the detector where there is no text encoder.

    Returns:
        the worst figures of each graph: `relative_error` for features; `mask_iou` and `score_error` for prompts.
    """
    found: dict[GraphName, list[dict[str, float]]] = {graph.name: [] for graph in graphs}
    for pixels in images:
        values = {PIXELS: pixels}
        for graph in graphs:
            for prompt in _prompts(graph, phrases, pixels.shape[-1]):
                given = {name: (values | prompt)[name] for name in graph.inputs}
                expected = graph.run(given)
                found[graph.name].append(figures(expected, runs[graph.name](given)))
                values |= given | expected
    return {name: worst(rows) for name, rows in found.items()}


def check(subject: str, measured: Mapping[str, float], remedy: str, feature_limit: float = FEATURE_LIMIT) -> None:
    """Refuse what differs from PyTorch by more than rounding.

    Args:
        subject: begins the error's sentence.
        measured: of `compare`.
        remedy: what to do, for the error.
        feature_limit: largest relative error of features.

    Raises:
        UserError: a figure is worse than its limit.
    """
    limits = {"relative_error": feature_limit, "score_error": SCORE_LIMIT, "mask_iou": MASK_LIMIT}
    for figure, value in measured.items():
        limit = limits[figure]
        good = value >= limit if figure == "mask_iou" else value <= limit
        if not good:  # NaN fails both
            raise UserError(
                f"{subject} differs from PyTorch: {figure.replace('_', ' ')} {value:.2g}, the limit is {limit:g}; "
                f"{remedy}, or report this model."
            )


def _prompts(graph: Graph, phrases: Sequence[Values], side: int) -> list[Values]:
    match graph.name:
        case "text_encoder":
            return list(phrases)
        case "detector":
            return [{**phrase, **box} for phrase in phrases[-1:] for box in _BOXES]
        case "interactive":
            return [prompt | {"points": prompt["points"] * side} for prompt in _POINTS]
    return [{}]


def figures(expected: Mapping[str, torch.Tensor], found: Sequence[Array]) -> dict[str, float]:
    """How far apart outputs are: masks by IoU, scores and boxes by difference, features by relative error."""
    pairs = {name: (value.numpy(), other) for (name, value), other in zip(expected.items(), found, strict=True)}
    masks = pairs.pop("mask_logits", None)
    if masks is None:
        return {"relative_error": max(relative_error(*pair) for pair in pairs.values())}
    differences = [float(np.abs(theirs - ours).max()) for theirs, ours in pairs.values()]
    return {"mask_iou": mask_iou(masks[0] > 0, masks[1] > 0), "score_error": max(differences)}


def relative_error(expected: Array, found: Array) -> float:
    """The length of the difference of two arrays, as vectors, over that of the expected one."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def worst(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The worst of each figure: the smallest IoU and cosine, the largest error."""
    # NumPy's maximum and minimum pass NaN on.
    return {
        name: float((np.max if name.endswith("error") else np.min)([row[name] for row in rows]))
        for name in (rows[0] if rows else {})
    }
