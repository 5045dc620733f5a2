"""Where an image lies in the encoder's input: prompts are mapped to it, answers back. NumPy alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.sam3.holes import fill_holes
from efficientsam3.sam3.prompts import Box, ObjectPrompt, Point, Prompt, PromptError

Floats = npt.NDArray[np.float32]
Masks = npt.NDArray[np.bool_]
# Labels of a box's top left and bottom right corner where SAM's prompt encoder takes it as points.
_CORNER_LABELS = (2, 3)


def check_prompt(prompt: Prompt, size: tuple[int, int]) -> None:
    """Refuse a prompt whose points or boxes are not in an image of (height, width) pixels.

    Raises:
        PromptError: a point or box lies outside the image, or a box is empty.
    """
    for box, _ in prompt.labelled_boxes:
        _check_inside(box, 4, "box", size)
        if not (box[0] < box[2] and box[1] < box[3]):
            raise PromptError(f"The box {list(box)} is empty: give x0 y0 x1 y1, the top left corner first.")
    for point, _ in prompt.labelled_points:
        _check_inside(point, 2, "point", size)


def _check_inside(coordinates: Sequence[float], count: int, what: str, size: tuple[int, int]) -> None:
    height, width = size
    xs, ys = coordinates[0::2], coordinates[1::2]
    inside = all(0 <= x <= width for x in xs) and all(0 <= y <= height for y in ys)
    if len(coordinates) != count or not inside:
        raise PromptError(f"The {what} {list(coordinates)} is not in the image of {width}x{height} pixels.")


@dataclass(frozen=True)
class Placement:
    """Where an image lies in the encoder's square input."""

    size: tuple[int, int]  # height, width in pixels
    content: tuple[int, int]  # height, width in pixels of the input that the image covers, at its top left
    image_size: int  # side of the input in pixels

    @classmethod
    def of(cls, height: int, width: int, preprocessing: Preprocessing) -> "Placement":
        """The placement of an image of `height` x `width` pixels."""
        return cls((height, width), preprocessing.content_size(height, width), preprocessing.image_size)

    def points_to_input(self, points: Sequence[Point]) -> Floats:
        """(N, 2) pixels of the image to pixels of the input."""
        scale = np.array([self.content[1] / self.size[1], self.content[0] / self.size[0]], dtype=np.float32)
        return np.array(points, dtype=np.float32).reshape(-1, 2) * scale

    def object_to_input(self, prompt: ObjectPrompt) -> tuple[Floats, list[int]]:
        """Points (N, 2) in pixels of the input and their labels, a box as two points as in SAM's prompt encoder."""
        labels = [*prompt.labels, *(_CORNER_LABELS if prompt.corners else ())]
        return self.points_to_input([*prompt.points, *prompt.corners]), labels

    def boxes_to_input(self, boxes: Sequence[Box]) -> Floats:
        """(N, 4) xyxy pixels of the image to cxcywh in [0, 1] of the input."""
        corners = [corner for box in boxes for corner in (box[:2], box[2:])]
        low, high = np.moveaxis(self.points_to_input(corners).reshape(-1, 2, 2) / np.float32(self.image_size), 1, 0)
        return np.concatenate([(low + high) / 2, high - low], axis=1)

    def boxes_to_image(self, boxes: Floats) -> Floats:
        """(N, 4) xyxy in [0, 1] of the input to pixels of the image."""
        height, width = self.size
        scale = np.array([width / self.content[1], height / self.content[0]] * 2, dtype=np.float32)
        limits = np.array([width, height] * 2, dtype=np.float32)
        clipped: Floats = np.clip(boxes * np.float32(self.image_size) * scale, 0, limits)
        return clipped

    def masks_to_image(self, logits: Floats, max_hole_area: int = 0) -> Masks:
        """(N, h, w) logits over the input to (N, H, W) masks of the image, by bilinear interpolation as in SAM3.

        Args:
            logits: are not changed.
            max_hole_area: see `fill_holes`; SAM3 fills holes in the tracker's masks, not in the detector's.
        """
        masks = np.zeros((len(logits), *self.size), dtype=np.bool_)
        filled = fill_holes(logits, max_hole_area)
        for mask, values in zip(masks, filled, strict=True):  # one by one: at once they would be floats of 4 bytes
            level = values
            if self.content != (self.image_size, self.image_size):
                level = _bilinear(level, (self.image_size, self.image_size))[: self.content[0], : self.content[1]]
            mask[:] = _bilinear(level, self.size) > 0
        return masks


def _bilinear(values: Floats, size: tuple[int, int]) -> Floats:
    """(h, w) to `size`, without antialiasing: `interpolate(..., align_corners=False)` of PyTorch, in NumPy."""
    for axis, length in enumerate(size):
        last = values.shape[axis] - 1
        centres = ((np.arange(length) + 0.5) * (values.shape[axis] / length) - 0.5).clip(0, last)
        low = centres.astype(np.intp)
        weight = (centres - low).astype(np.float32)[(slice(None), None) if axis == 0 else (None, slice(None))]
        below, above = values.take(low, axis), values.take(np.minimum(low + 1, last), axis)
        values = below + (above - below) * weight
    return values


def mask_iou(a: Any, b: Any) -> float:
    """Intersection over union, in [0, 1], of two bool arrays or tensors of one shape; 1 if both are empty."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def boxes_of_masks(masks: Masks) -> Floats:
    """Tight boxes (N, 4) xyxy of masks (N, H, W), in pixel edges; zeros for an empty mask."""
    boxes = np.zeros((len(masks), 4), dtype=np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes
