"""Which prompts an image is asked with in an epoch: a function of SEED, the epoch and the image's id alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from efficientsam3.data.augment import augmentation_seed
from efficientsam3.data.objects import ImageObjects
from efficientsam3.runtime.device import copy_to

_GRID = 8  # cells a side of an image without objects
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Shown:
    """What the images of a batch show."""

    image_ids: Sequence[str]  # empty for a stand-in
    content_sizes: torch.Tensor  # (B, 2) height and width in pixels of the input, on the device
    objects: Sequence[ImageObjects | None]  # None where there are none that are known
    epoch: int


@dataclass(frozen=True)
class DrawnPrompts:
    """Prompts of a batch, boxes and points by turns, each for another object of its image where there are as many.

    An image without known objects is asked at the cells of a grid: its coordinates are shares of its content's width
    and height, which only the device knows.
    """

    images: npt.NDArray[np.int64]  # (P,) which image
    is_box: npt.NDArray[np.bool_]  # (P,)
    is_share: npt.NDArray[np.bool_]  # (P,)
    boxes: Floats  # (P, 4) x0, y0, x1, y1 in pixels of the input, or shares: the grid's cell
    points: Floats  # (P, 2) x, y likewise, within the box
    chances: Floats  # (rounds, P) in [0, 1): which of the pixels that can be clicked on next

    def sorted(self) -> "DrawnPrompts":
        """Boxes before points, and of the boxes those of grids first."""
        order = np.lexsort((~self.is_share, ~self.is_box))
        return DrawnPrompts(
            self.images[order],
            self.is_box[order],
            self.is_share[order],
            self.boxes[order],
            self.points[order],
            self.chances[:, order],
        )

    def placed(self, content_sizes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Images, boxes, points and chances on the device of `Shown.content_sizes`, in pixels of the input.

        The device is not waited for: one copy has all.
        """
        device = content_sizes.device
        rows = (self.images[:, None], self.is_share[:, None], self.boxes, self.points, self.chances.T)
        table = torch.from_numpy(np.concatenate(rows, axis=1, dtype=np.float32))
        table = copy_to(device, table.pin_memory() if device.type == "cuda" else table)
        images = table[:, 0].long()
        scale = torch.where(table[:, 1:2] > 0, content_sizes[images].flip(1), 1)  # [P, 2] width, height
        return images, table[:, 2:6] * scale.repeat(1, 2), table[:, 6:8] * scale, table[:, 8:].T


def draw_prompts(shown: Shown, count: int, rounds: int, seed: int) -> DrawnPrompts:
    """Draw `count` prompts for each image, and what `rounds` refinements of each need."""
    drawn = [
        _draw(objects, count, rounds, np.random.default_rng((augmentation_seed(seed, image_id), shown.epoch)))
        for image_id, objects in zip(shown.image_ids, shown.objects, strict=True)
    ]
    images = np.repeat(np.arange(len(drawn)), count)
    is_share = np.repeat([objects is None for objects in shown.objects], count)
    is_box, boxes, points, chances = (np.concatenate(parts, axis=-1).T for parts in zip(*drawn, strict=True))
    return DrawnPrompts(images, is_box, is_share, boxes, points, chances.T)


def _draw(
    objects: ImageObjects | None, count: int, rounds: int, generator: np.random.Generator
) -> tuple[npt.NDArray[np.bool_], Floats, Floats, Floats]:
    """Whether each is a box (count,); boxes (4, count), points (2, count), and chances (rounds, count)."""
    is_box = (np.arange(count) + generator.integers(2)) % 2 == 0
    if objects is None:
        boxes, points = _grid(count, generator)
    else:
        chosen = np.resize(generator.permutation(len(objects.boxes)), count)
        boxes = objects.boxes[chosen]
        points = objects.points[chosen, generator.integers(objects.points.shape[1], size=count)]
    return is_box, boxes.T, points.T, generator.random((rounds, count), dtype=np.float32)


def _grid(count: int, generator: np.random.Generator) -> tuple[Floats, Floats]:
    """Cells of the grid, as boxes (count, 4), and a point (count, 2) within each."""
    cells = np.resize(generator.permutation(_GRID * _GRID), count)
    low = np.stack([cells % _GRID, cells // _GRID], axis=1)
    points = low + generator.random((count, 2))
    return (np.concatenate([low, low + 1], axis=1) / _GRID).astype(np.float32), (points / _GRID).astype(np.float32)
