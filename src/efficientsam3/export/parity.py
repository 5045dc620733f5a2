"""PyTorch and ONNX Runtime side by side, graph by graph, on images."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from efficientsam3.export.graphs import Graph
from efficientsam3.export.ports import GraphName
from efficientsam3.models.onnx_session import open_onnx
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.promptable import PADDING_LABEL

Values = dict[str, torch.Tensor]
Array = npt.NDArray[Any]
# Of features, of scores and boxes in [0, 1], and of masks, at whose edge rounding may turn a pixel.
FEATURE_LIMIT, MASK_LIMIT, SCORE_LIMIT = 1e-4, 0.999, 1e-3
_LIMITS = {"relative_error": FEATURE_LIMIT, "score_error": SCORE_LIMIT, "mask_iou": MASK_LIMIT}
# Other numbers of prompts than the graphs were traced with, in parts of the input.
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
    graphs: Sequence[Graph], folder: Path, images: Iterable[torch.Tensor], phrases: Sequence[Values]
) -> dict[GraphName, dict[str, float]]:
    """Run every graph on what PyTorch gives it, image by image and prompt by prompt.

    Args:
        graphs: in the order in which they run.
        folder: has `<name>.onnx` of each.
        images: (1, 3, S, S) float32, normalised.
        phrases: inputs of the text encoder, or of the detector where there is no text encoder.

    Returns:
        Of each graph its worst figures: `relative_error` for features; `mask_iou` and `score_error` for prompts.

    Raises:
        UserError: a graph differs by more than rounding.
    """
    sessions = {graph.name: open_graph(folder / f"{graph.name}.onnx") for graph in graphs}
    found: dict[GraphName, list[dict[str, float]]] = {graph.name: [] for graph in graphs}
    for pixels in images:
        values = {"pixels": pixels}
        for graph in graphs:
            for prompt in _prompts(graph, phrases, pixels.shape[-1]):
                given = {name: (values | prompt)[name] for name in graph.inputs}
                expected = graph.run(given)
                found[graph.name].append(figures(expected, run_graph(sessions[graph.name], given)))
                values |= given | expected
    measured = {name: worst(rows) for name, rows in found.items()}
    for name, row in measured.items():
        _check(name, row)
    return measured


def _prompts(graph: Graph, phrases: Sequence[Values], side: int) -> list[Values]:
    match graph.name:
        case "text_encoder":
            return list(phrases)
        case "detector":
            return [{**phrase, **box} for phrase in phrases[-1:] for box in _BOXES]
        case "interactive":
            return [prompt | {"points": prompt["points"] * side} for prompt in _POINTS]
    return [{}]


def open_graph(path: Path) -> Any:
    """A session for one of the graphs."""
    return open_onnx(path, "ONNX graph", "export the model again")


def run_graph(session: Any, inputs: Values) -> list[Array]:
    """A graph's outputs by ONNX Runtime."""
    outputs: list[Array] = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return outputs


def figures(expected: Mapping[str, torch.Tensor], found: Sequence[Array]) -> dict[str, float]:
    """How far apart outputs are, by their meaning."""
    pairs = {name: (value.numpy(), other) for (name, value), other in zip(expected.items(), found, strict=True)}
    masks = pairs.pop("mask_logits", None)
    if masks is None:
        return {"relative_error": max(relative_error(*pair) for pair in pairs.values())}
    differences = [float(np.abs(theirs - ours).max()) for theirs, ours in pairs.values()]
    return {"mask_iou": mask_iou(masks[0] > 0, masks[1] > 0), "score_error": max(differences)}


def relative_error(expected: Array, found: Array) -> float:
    """Of two arrays as vectors: length of the difference by length of the expected one."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def mask_iou(expected: Array, found: Array) -> float:
    """IoU of all masks as one; 1 for two empty ones."""
    union = int((expected | found).sum())
    return int((expected & found).sum()) / union if union else 1.0


def worst(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The worst of each figure: the smallest IoU and cosine, the largest error."""
    return {
        name: (max if name.endswith("error") else min)(row[name] for row in rows) for name in (rows[0] if rows else {})
    }


def _check(name: str, row: Mapping[str, float]) -> None:
    for figure, value in row.items():
        limit = _LIMITS[figure]
        good = value >= limit if figure == "mask_iou" else value <= limit
        if not good:  # NaN is not good either
            raise UserError(
                f"The ONNX graph {name} differs from PyTorch: {figure.replace('_', ' ')} {value:.2g}, the limit is "
                f"{limit:g}; export with the versions in requirements/pinned.txt, or report this model."
            )
