"""Filling small holes in masks, as Meta's interactive predictor does before it thresholds. NumPy alone.

Followed: `SAM3InteractiveImagePredictor` (sam3/model/sam1_task_predictor.py) and its `postprocess_masks`
(sam3/model/utils/sam1_utils.py) in https://github.com/facebookresearch/sam3; the page's twin is page/holes.js.
"""

import numpy as np
import numpy.typing as npt

MAX_HOLE_AREA = 256  # pixels of the low-resolution mask; Meta's default
_FILLED = 10  # logit of a filled pixel, Meta's threshold of 0 plus 10
_Bools = npt.NDArray[np.bool_]
_Integers = npt.NDArray[np.intp]


def fill_holes(logits: npt.NDArray[np.float32], max_area: float = MAX_HOLE_AREA) -> npt.NDArray[np.float32]:
    """Put small holes on the object.

    A hole is a part of the background (logits of 0 or less) whose pixels are connected by sides or corners. One that
    touches the border counts like any other.

    Args:
        logits: (N, h, w) at the decoder's resolution, before they are resized.
        max_area: holes of so many pixels or fewer are filled; 0 fills none.

    Returns:
        The logits with 10 in each filled pixel, as a copy; the input itself where nothing is to be filled.
    """
    if max_area <= 0:
        return logits
    filled = logits.copy()
    for values in filled:
        values[_small_parts(values <= 0, max_area)] = _FILLED
    return filled


def _small_parts(mask: _Bools, max_area: float) -> _Bools:
    """Pixels (h, w) of those 8-connected parts of a mask (h, w) that have `max_area` pixels or fewer.

    Runs of pixels in a row are joined with those that they touch in the row above.
    """
    height, width = mask.shape
    step = width + 1  # an empty column keeps the runs of two rows apart
    padded = np.zeros((height, step), dtype=np.int8)
    padded[:, :width] = mask
    changes = np.diff(padded.ravel(), prepend=np.int8(0))
    starts, ends = np.flatnonzero(changes == 1), np.flatnonzero(changes == -1)
    # In the row above, a run touches those that end after its left neighbour and start before its right one.
    first = np.searchsorted(ends, starts - step)
    counts = (np.searchsorted(starts, ends - step, side="right") - first).clip(0)
    lower = np.repeat(np.arange(len(starts)), counts)
    upper = np.arange(len(lower)) + np.repeat(first - counts.cumsum() + counts, counts)
    roots = _roots(len(starts), upper, lower)
    small = np.bincount(roots, ends - starts, len(starts))[roots] <= max_area
    changes[:] = 0
    changes[starts[small]], changes[ends[small]] = 1, -1
    filled: _Bools = changes.cumsum().reshape(height, step)[:, :width] > 0
    return filled


def _roots(count: int, one: _Integers, other: _Integers) -> _Integers:
    """For each of `count` nodes of a graph with these edges, one node that stands for its whole component."""
    roots = np.arange(count)
    while True:
        low, high = np.minimum(roots[one], roots[other]), np.maximum(roots[one], roots[other])
        apart = low != high
        if not apart.any():
            return roots
        one, other = one[apart], other[apart]
        roots[high[apart]] = low[apart]  # a root below several others takes any of them: the next round joins the rest
        while (roots != (above := roots[roots])).any():
            roots = above
