"""Prompts and answers, whatever computes them: PyTorch and ONNX Runtime share everything here."""

from abc import ABC, abstractmethod
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.geometry import Box, Floats, Picture, Point
from efficientsam3.sam3.parts import VISUAL_PROMPT

# A box with this label is padding to transformers.
PADDING_LABEL = -10
Array = TypeVar("Array", bound=Sized)  # torch.Tensor or a NumPy array


@dataclass(frozen=True)
class Segmentation(Generic[Array]):
    """Objects found in one picture, best first; on the CPU."""

    masks: Array  # (N, H, W) bool
    boxes: Array  # (N, 4) float32, xyxy in pixels
    scores: Array  # (N,) float32 in [0, 1]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Prompts:
    """What is asked of every picture, in pixels."""

    texts: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    box_labels: tuple[int, ...] = ()
    points: tuple[Point, ...] = ()
    labels: tuple[int, ...] = ()
    object_box: Box | None = None

    @property
    def detections(self) -> tuple[str | None, ...]:
        """The phrases that the detector is asked for; None for boxes alone."""
        return self.texts or ((None,) if self.boxes else ())

    @property
    def is_interactive(self) -> bool:
        """Whether the interactive predictor is asked."""
        return bool(self.points) or self.object_box is not None


class Promptable(ABC, Generic[Array]):
    """A picture whose embedding is computed."""

    def __init__(self, picture: Picture) -> None:
        self.size = picture.size  # height, width in pixels
        self._picture = picture

    def segment(
        self,
        text: str | None = None,
        *,
        boxes: Sequence[Box] = (),
        box_labels: Sequence[int] | None = None,
        points: Sequence[Point] = (),
        labels: Sequence[int] | None = None,
        object_box: Box | None = None,
        threshold: float = 0.5,
        candidates: bool = False,
    ) -> Segmentation[Array]:
        """Answer one prompt.

        `text` and `boxes` go to the detector, which finds every object that fits: a box is an example, "more like
        this" (label 1) or "not like this" (0), and without text the prompt is "visual", as in Meta's code. `points` and
        `object_box` go to the interactive predictor, which outlines one object.

        Args:
            text: a short noun phrase.
            boxes: examples, xyxy in pixels of the picture.
            box_labels: 1 or 0 for each box; all 1 by default.
            points: (x, y) in pixels, on the object or off it.
            labels: 1 (on) or 0 (off) for each point; all 1 by default.
            object_box: xyxy in pixels around the one object.
            threshold: lowest score that the detector's answers need; the interactive predictor's are not filtered.
            candidates: return the interactive predictor's three masks rather than its best.

        Returns:
            Detector: score = probability of the object x probability that the phrase is in the picture at all.
            Interactive predictor: score = predicted IoU with the true mask; the box is that of the mask.

        Raises:
            UserError: no prompt, prompts of both kinds, labels of prompts that are not there, a box or point outside
                the picture, or a part that is left out.
        """
        interactive = len(points) > 0 or object_box is not None
        if interactive == (text is not None or len(boxes) > 0):
            raise UserError(
                "Give either text and boxes (for the detector) or points and an object box (for the interactive "
                "predictor) in one prompt: ask twice to have both."
            )
        stray = "box_labels" if interactive else "labels"
        if (box_labels if interactive else labels) is not None:
            raise UserError(f"{stray} belongs to prompts of the other kind: points have labels, boxes have box_labels.")
        if interactive:
            marks = self._labels(points, labels, "point")
            if object_box is not None:
                self._picture.check_inside(object_box, "box")
            return self._outline(points, marks, object_box, candidates)
        marks = self._labels(boxes, box_labels, "box")
        return self._detect(VISUAL_PROMPT if text is None else text, boxes, marks, threshold)

    def _labels(self, prompts: Sequence[Sequence[float]], labels: Sequence[int] | None, what: str) -> list[int]:
        for prompt in prompts:
            self._picture.check_inside(prompt, what)
        given = [1] * len(prompts) if labels is None else list(labels)
        if len(given) != len(prompts) or not set(given) <= {0, 1}:
            raise UserError(f"{len(prompts)} {what} prompts have the labels {given}: give 1 or 0 for each.")
        return given

    @abstractmethod
    def _detect(self, text: str, boxes: Sequence[Box], labels: list[int], threshold: float) -> Segmentation[Array]:
        """Ask the detector."""

    @abstractmethod
    def _outline(
        self, points: Sequence[Point], labels: list[int], box: Box | None, candidates: bool
    ) -> Segmentation[Array]:
        """Ask the interactive predictor, for all its masks or its best."""


def ranked(scores: Floats, threshold: float = -np.inf) -> npt.NDArray[np.intp]:
    """Indices of the scores (N,) above the threshold, best first; equal ones in their order."""
    order = np.argsort(-scores, kind="stable")
    return order[scores[order] > threshold]


def pad_phrase(text: str, ids: Sequence[int], length: int, pad_id: int) -> tuple[Any, Any]:
    """Token ids and attention mask of one phrase, each (1, length) int64.

    Args:
        text: the phrase, for the errors.
        ids: its tokens, start and end included.
        length: positions of the text encoder.
        pad_id: what fills it up.

    Raises:
        UserError: the phrase is empty, or longer than the text encoder takes.
    """
    if not text.strip():
        raise UserError("The text prompt is empty: name something, such as 'a dog'.")
    if len(ids) > length:
        raise UserError(f"The text prompt {text!r} has {len(ids)} tokens, at most {length} fit: shorten it.")
    row = np.full((1, length), pad_id, dtype=np.int64)
    row[0, : len(ids)] = ids
    return row, (np.arange(length) < len(ids)).astype(np.int64)[None]
