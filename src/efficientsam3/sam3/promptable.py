"""The image that answers prompts, whatever computes the answers: PyTorch and ONNX Runtime share everything here."""

from abc import ABC, abstractmethod
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from efficientsam3.data.images import read_pixels
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.geometry import Floats, Placement, check_prompt
from efficientsam3.sam3.holes import MAX_HOLE_AREA
from efficientsam3.sam3.prompts import ConceptPrompt, ObjectPrompt, Prompt

# A box with this label is padding to transformers.
PADDING_LABEL = -10
Pixels = npt.NDArray[np.uint8]
Array = TypeVar("Array", bound=Sized)  # torch.Tensor or a NumPy array
Values = TypeVar("Values")  # the same, of floats


@dataclass(frozen=True)
class Segmentation(Generic[Array]):
    """Objects found in one image, best first; on the CPU."""

    masks: Array  # (N, H, W) bool
    boxes: Array  # (N, 4) float32, xyxy in pixels
    scores: Array  # (N,) float32 in [0, 1]
    logits: Array | None = None  # (N, h, w) over the encoder's input, of the tracker where it refines masks
    presence: float | None = None  # probability that the phrase is in the image at all, of the detector

    def __len__(self) -> int:
        return len(self.scores)


class Promptable(ABC, Generic[Array]):
    """An image whose embedding is computed."""

    def __init__(self, placement: Placement) -> None:
        self.size = placement.size  # height, width in pixels
        self._placement = placement

    def segment(
        self,
        text: str | None = None,
        *,
        boxes: Sequence[Sequence[float]] = (),
        box_labels: Sequence[int] | None = None,
        points: Sequence[Sequence[float]] = (),
        labels: Sequence[int] | None = None,
        object_box: Sequence[float] | None = None,
        threshold: float = 0.5,
        candidates: bool = False,
        max_hole_area: int = MAX_HOLE_AREA,
    ) -> Segmentation[Array]:
        """Answer one prompt.

        `text` and `boxes` go to the detector, which finds every object that fits: a box is an example, "more like
        this" (label 1) or "not like this" (0), and without text the prompt is "visual", as in Meta's code. `points` and
        `object_box` go to the tracker, which segments one object.

        Args:
            text: a short noun phrase.
            boxes: examples, xyxy in pixels of the image.
            box_labels: 1 or 0 for each box; all 1 by default.
            points: (x, y) in pixels, on the object or off it.
            labels: 1 (on) or 0 (off) for each point; all 1 by default.
            object_box: xyxy in pixels around the one object.
            threshold: lowest score that the detector's answers need; the tracker's are not filtered.
            candidates: return the tracker's three masks rather than its best.
            max_hole_area: fill holes of so many pixels or fewer in the tracker's low-resolution masks, as Meta's
                interactive predictor does; 0 fills none. The detector's masks are left as they are, as in Meta's code.

        Returns:
            Detector: score = probability of the object x probability that the phrase is in the image at all.
            Tracker: score = predicted IoU with the true mask; the box is that of the mask.

        Raises:
            UserError: there is no prompt, there are prompts of both kinds or labels of prompts that are not there, a
                box or point lies outside the image, or the model was merged without the part that answers.
        """
        asks_tracker = len(points) > 0 or object_box is not None
        if asks_tracker == (text is not None or len(boxes) > 0):
            raise UserError(
                "Give either text and boxes (for the detector) or points and an object box (for the tracker) in one "
                "prompt: ask twice to have both."
            )
        stray = "box_labels" if asks_tracker else "labels"
        if (box_labels if asks_tracker else labels) is not None:
            raise UserError(f"{stray} belongs to prompts of the other kind: points have labels, boxes have box_labels.")
        rows, given = (points, labels) if asks_tracker else (boxes, box_labels)
        coordinates: Any = tuple(map(tuple, rows))
        marks = (1,) * len(rows) if given is None else tuple(given)
        box: Any = None if object_box is None else tuple(object_box)
        prompt: Prompt = (
            ObjectPrompt(coordinates, marks, box) if asks_tracker else ConceptPrompt(text, coordinates, marks)
        )
        return self.ask(prompt, threshold=threshold, candidates=candidates, max_hole_area=max_hole_area)

    def ask(
        self,
        prompt: Prompt,
        *,
        threshold: float = 0.5,
        candidates: bool = False,
        max_hole_area: int = MAX_HOLE_AREA,
    ) -> Segmentation[Array]:
        """Answer a prompt; see `segment`."""
        check_prompt(prompt, self._placement.size)
        if isinstance(prompt, ObjectPrompt):
            return self._track(prompt, candidates, max_hole_area)
        return self._detect(prompt, threshold)

    @abstractmethod
    def _detect(self, prompt: ConceptPrompt, threshold: float) -> Segmentation[Array]:
        """Ask the detector."""

    @abstractmethod
    def _track(self, prompt: ObjectPrompt, candidates: bool, max_hole_area: int) -> Segmentation[Array]:
        """Ask the tracker, for all its masks or its best, and fill their holes."""


def finite(values: Values, what: str) -> Values:
    """The values as they are.

    Args:
        values: what a model answers.
        what: what they are, for the error.

    Raises:
        UserError: one is NaN or infinite: "nothing found" would be a lie.
    """
    given: Any = values
    if isinstance(given, np.ndarray):
        whole = bool(np.isfinite(given).all())
    else:
        from efficientsam3.checkpoints.fitting import is_finite  # here, since ONNX Runtime's answers need no PyTorch

        whole = is_finite(given)
    if not whole:
        raise UserError(
            f"The model gives {what} that are not finite: give one that is unchanged, and whose training did not "
            "diverge, or try it on the CPU."
        )
    return values


def ranked(scores: Floats, threshold: float = -np.inf) -> npt.NDArray[np.intp]:
    """Indices of the scores (N,) above the threshold, best first; equal ones in their order."""
    order = np.argsort(-scores, kind="stable")
    return order[scores[order] > threshold]


def to_pixels(image: str | Path | Image.Image | Pixels) -> Pixels:
    """An image in any form as (H, W, 3) uint8 RGB.

    Raises:
        UserError: it cannot be read, or is an array of another kind.
    """
    if isinstance(image, str | Path):
        return read_pixels(Path(image))
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise not_rgb(image)
    return image


def not_rgb(image: Any) -> UserError:
    """The error for a tensor or array that does not hold RGB pixels of 8 bits."""
    return UserError(
        f"An image of shape {tuple(image.shape)} and {image.dtype} is not RGB of 8 bits: give (3, H, W) uint8 as a "
        "tensor or (H, W, 3) uint8 as an array."
    )
