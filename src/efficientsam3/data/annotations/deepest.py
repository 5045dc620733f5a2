"""The pixel furthest inside a mask."""

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt


def deepest_pixel(mask: npt.NDArray[np.bool_]) -> tuple[float, tuple[int, int]]:
    """How deep a mask (H, W) goes, and where.

    Distances are Euclidean, to the nearest pixel outside; the image's border counts as one. Of equals, the first pixel
    row by row.

    Returns:
        the distance in pixels, and the pixel's x and y; 0 and (0, 0) for an empty mask.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return 0.0, (0, 0)
    top, left = rows[0], columns[0]
    depths = distance_transform_edt(np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1))
    row, column = np.unravel_index(np.argmax(depths), depths.shape)
    return float(depths[row, column]), (int(left + column - 1), int(top + row - 1))
