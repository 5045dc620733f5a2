"""COCO's compressed run lengths, read as untrusted input.

A mask of (H, W) is written column by column as lengths of alternating runs, zeros first; from the fourth on as
differences to the length two before; each as groups of 5 bits, lowest first, in characters from `0` on, whose sixth bit
says that more follow. The format is that of `rleToString` in
https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c, whose own reader overruns malformed strings.
"""

import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# Groups that end in a character without the sixth bit; 7 of 5 bits hold any count below 2**34.
_WELL_FORMED = re.compile(rb"(?:[P-o]{0,6}[0-O])*")
_LARGEST_IMAGE = 1 << 31  # pixels


class PixelBox(NamedTuple):
    """Inclusive pixel bounds."""

    xmin: int
    ymin: int
    xmax: int
    ymax: int


class Rle:
    """One mask as runs."""

    def __init__(self, height: int, width: int, counts: str | bytes) -> None:
        """Parse the runs.

        Args:
            height: rows of the mask.
            width: columns of the mask.
            counts: the compressed string.

        Raises:
            ValueError: the string is malformed, or its runs do not add up to the mask.
        """
        if height < 1 or width < 1 or height * width > _LARGEST_IMAGE:
            raise ValueError(f"a mask of {height} x {width}")
        self.height, self.width = height, width
        self.runs = _parse(counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts)
        if len(self.runs) and not 0 <= self.runs.min() <= self.runs.max() <= height * width:
            raise ValueError("a run that is negative or longer than the mask")
        if int(self.runs.sum()) != height * width:
            raise ValueError(f"runs of {int(self.runs.sum())} pixels in a mask of {height} x {width}")
        self._ends = np.cumsum(self.runs)

    @property
    def area(self) -> int:
        """Number of pixels in the mask."""
        return int(self.runs[1::2].sum())

    def box(self) -> PixelBox | None:
        """The tight box; None for an empty mask."""
        ones = self.runs[1::2] > 0
        if not ones.any():
            return None
        first = (self._ends[1::2] - self.runs[1::2])[ones]
        last = self._ends[1::2][ones] - 1
        across = first // self.height != last // self.height  # a run over several columns touches top and bottom
        return PixelBox(
            int(first[0] // self.height),
            0 if across.any() else int((first % self.height).min()),
            int(last[-1] // self.height),
            self.height - 1 if across.any() else int((last % self.height).max()),
        )

    def contains(self, x: int, y: int) -> bool:
        """Whether the mask covers a pixel of its image."""
        run = np.searchsorted(self._ends, x * self.height + y, side="right")
        return bool(run % 2)

    def mask(self) -> npt.NDArray[np.bool_]:
        """(H, W) bool."""
        values = np.arange(len(self.runs)) % 2 == 1
        return np.repeat(values, self.runs).reshape(self.width, self.height).T


def _parse(text: bytes) -> npt.NDArray[np.int64]:
    if not _WELL_FORMED.fullmatch(text):
        raise ValueError("malformed run lengths")
    codes = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes & 0x20 == 0)
    if not len(ends):
        return np.zeros(0, dtype=np.int64)
    starts = np.concatenate(([0], ends[:-1] + 1))
    digit = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    values = np.add.reduceat((codes & 0x1F) << (5 * digit), starts)
    # The fifth bit of the last character is the sign, extended upwards.
    values -= np.where(codes[ends] & 0x10, np.int64(1) << (5 * (ends - starts + 1)), 0)
    for parity in (1, 2):
        values[parity::2] = np.cumsum(values[parity::2])
    return values
