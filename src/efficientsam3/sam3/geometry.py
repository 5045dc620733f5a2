"""Where a picture lies in the encoder's input: prompts go there, answers come back. NumPy alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from efficientsam3.data.images import read_pixels
from efficientsam3.runtime.errors import UserError

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Masks = npt.NDArray[np.bool_]
Box = Sequence[float]
Point = Sequence[float]


@dataclass(frozen=True)
class Picture:
    """Where a picture lies in the encoder's square input."""

    size: tuple[int, int]  # height, width in pixels
    content: tuple[int, int]  # height, width in pixels of the input that it covers, at its top left
    image_size: int

    def check_inside(self, coordinates: Sequence[float], what: str) -> None:
        """Refuse a point (x, y) or box (x0, y0, x1, y1) that is not in the picture.

        Raises:
            UserError: it is not, or the box is empty.
        """
        height, width = self.size
        xs, ys = coordinates[0::2], coordinates[1::2]
        inside = all(0 <= x <= width for x in xs) and all(0 <= y <= height for y in ys)
        if len(coordinates) not in (2, 4) or not inside:
            raise UserError(f"The {what} {list(coordinates)} is not in the picture of {width}x{height} pixels.")
        if len(coordinates) == 4 and not (xs[0] < xs[1] and ys[0] < ys[1]):
            raise UserError(f"The {what} {list(coordinates)} is empty: give x0 y0 x1 y1, the top left corner first.")

    def to_input_points(self, points: Sequence[Point]) -> Floats:
        """(N, 2) pixels of the picture to pixels of the input."""
        scale = np.array([self.content[1] / self.size[1], self.content[0] / self.size[0]], dtype=np.float32)
        return np.array(points, dtype=np.float32).reshape(-1, 2) * scale

    def to_unit_boxes(self, boxes: Sequence[Box]) -> Floats:
        """(N, 4) xyxy pixels of the picture to cxcywh in [0, 1] of the input."""
        corners = [corner for box in boxes for corner in (box[:2], box[2:])]
        low, high = np.moveaxis(self.to_input_points(corners).reshape(-1, 2, 2) / np.float32(self.image_size), 1, 0)
        return np.concatenate([(low + high) / 2, high - low], axis=1)

    def to_boxes(self, boxes: Floats) -> Floats:
        """(N, 4) xyxy in [0, 1] of the input to pixels of the picture."""
        height, width = self.size
        scale = np.array([width / self.content[1], height / self.content[0]] * 2, dtype=np.float32)
        limits = np.array([width, height] * 2, dtype=np.float32)
        clipped: Floats = np.clip(boxes * np.float32(self.image_size) * scale, 0, limits)
        return clipped

    def to_masks(self, logits: Floats) -> Masks:
        """(N, h, w) logits over the input to (N, H, W) masks of the picture, by bilinear interpolation as in SAM3."""
        masks = np.zeros((len(logits), *self.size), dtype=np.bool_)
        for mask, values in zip(masks, logits, strict=True):  # one by one: at once they would be floats of 4 bytes
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


def boxes_of_masks(masks: Masks) -> Floats:
    """Tight boxes (N, 4) xyxy of masks (N, H, W), in pixel edges; zeros for an empty mask."""
    boxes = np.zeros((len(masks), 4), dtype=np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def to_pixels(picture: str | Path | Image.Image | Pixels) -> Pixels:
    """A picture in any form as (H, W, 3) uint8 RGB.

    Raises:
        UserError: it cannot be read, or is an array of another kind.
    """
    if isinstance(picture, str | Path):
        return read_pixels(Path(picture))
    if isinstance(picture, Image.Image):
        return np.asarray(picture.convert("RGB"))
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise not_rgb(picture)
    return picture


def not_rgb(picture: Any) -> UserError:
    """What to say of a tensor or array that is no picture."""
    return UserError(
        f"A picture of shape {tuple(picture.shape)} and {picture.dtype} is not RGB of 8 bits: give (3, H, W) uint8 "
        "as a tensor or (H, W, 3) uint8 as an array."
    )
