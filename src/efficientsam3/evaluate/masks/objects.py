"""Objects of the ground truth, and the prompts that each gives: boxes, points, category name."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from efficientsam3.data.annotations.rle import Rle
from efficientsam3.sam3.prompts import Box, ConceptPrompt, ObjectPrompt, Point, Prompt

PromptKind = Literal["box", "jitter", "point", "center", "clicks-1", "clicks-3", "clicks-5", "text"]
PROMPT_KINDS: tuple[PromptKind, ...] = get_args(PromptKind)
CLICKS: dict[PromptKind, int] = {"clicks-1": 1, "clicks-3": 3, "clicks-5": 5}
# SAM's training noise on boxes (Kirillov et al. 2023, appendix A), per edge: deviation in sides, largest in pixels.
_JITTER, _LARGEST_JITTER = 0.1, 20.0


@dataclass(frozen=True)
class TrueObject:
    """One object of the ground truth."""

    number: int  # its index in the file, or among its image's masks there
    rle: Rle
    annotated_point: Point | None = None
    category: str | None = None

    @property
    def box(self) -> Box:
        """Tight around the mask's pixels, from edge to edge, whatever convention the file's own box follows."""
        box = self.rle.box()
        assert box is not None, "empty masks are skipped when ground truth is read"
        return float(box.xmin), float(box.ymin), float(box.xmax + 1), float(box.ymax + 1)

    @cached_property
    def point(self) -> Point:
        """The annotation's point, or, in a file without points, the most interior pixel of the mask."""
        return self.annotated_point or interior_point(self.rle.mask())

    def jittered_box(self, seed: int) -> Box:
        """The box with noise on each edge, drawn by its image's seed and the object's number."""
        generator = np.random.default_rng([seed, self.number])
        x0, y0, x1, y1 = self.box
        sides = np.array([x1 - x0, y1 - y0] * 2)
        noise = (generator.normal(0, _JITTER, 4) * sides).clip(-_LARGEST_JITTER, _LARGEST_JITTER)
        x0, y0, x1, y1 = (noise + self.box).tolist()
        height, width = self.rle.height, self.rle.width
        x0, y0 = min(max(x0, 0.0), width - 1.0), min(max(y0, 0.0), height - 1.0)
        return x0, y0, min(max(x1, x0 + 1), float(width)), min(max(y1, y0 + 1), float(height))

    def prompt(self, kind: PromptKind, seed: int = 0) -> Prompt:
        """What to ask for this object, but not for `CLICKS`, which depend on the answers; `seed` is for `jitter`."""
        assert kind not in CLICKS, kind
        if kind == "text":
            assert self.category is not None, "checked before work begins"
            return ConceptPrompt(self.category)
        if kind == "box":
            return ObjectPrompt(box=self.box)
        if kind == "jitter":
            return ObjectPrompt(box=self.jittered_box(seed))
        x0, y0, x1, y1 = self.box
        point = self.point if kind == "point" else ((x0 + x1) / 2, (y0 + y1) / 2)
        return ObjectPrompt((point,), (1,))


def interior_point(mask: npt.NDArray[np.bool_]) -> Point:
    """The pixel (x, y) furthest from everything that is not the mask, the image's border included.

    Distance is the chessboard's: the pixel is the middle of the largest square in the mask. Of several, the one nearest
    to their common centre.

    Args:
        mask: (H, W), not empty.
    """
    fitting, low, high = mask, 0, (min(mask.shape) + 1) // 2
    while high - low > 1:  # a square of radius `low` fits somewhere, of radius `high` nowhere
        radius = (low + high) // 2
        middles = _square_middles(mask, radius)
        fitting, low, high = (middles, radius, high) if middles.any() else (fitting, low, radius)
    rows, columns = np.nonzero(fitting)
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return float(columns[nearest]), float(rows[nearest])


def _square_middles(mask: npt.NDArray[np.bool_], radius: int) -> npt.NDArray[np.bool_]:
    """(H, W): whether the square of side 2 * radius + 1 around a pixel lies in the mask; by a summed-area table."""
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), dtype=np.int64)
    sums[1:, 1:] = mask.cumsum(0).cumsum(1)
    side = 2 * radius + 1
    inside = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    middles = np.zeros_like(mask)
    middles[radius : mask.shape[0] - radius, radius : mask.shape[1] - radius] = inside == side * side
    return middles
