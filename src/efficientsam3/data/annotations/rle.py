"""COCO's compressed run lengths, read as untrusted input.

A mask of (H, W) is written column by column as lengths of alternating runs, zeros first; from the fourth on as
differences to the length two before; each as groups of 5 bits, lowest first, in characters from `0` on, whose sixth bit
says that more follow. The format is that of `rleToString` in
https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c, whose own reader overruns malformed strings.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_MORE = 0x20  # of a character's six bits: further ones of its group follow
_SIGN = 0x10  # in a group's last character
_LONGEST_GROUP = 7  # characters; 5 bits of each hold any count below 2**34
_LARGEST_IMAGE = 1 << 31  # pixels
_CHUNK = 1 << 20  # characters parsed at a time

Runs = npt.NDArray[np.uint32]


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
        self.runs = _parse(
            counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts, height * width
        )
        self._ends: Runs = np.cumsum(self.runs, dtype=np.uint32)

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

    def pixels(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(N, 2) x and y of the pixels in the mask that have these numbers (N,), counted column by column."""
        lengths = self.runs[1::2].astype(np.int64)
        ends = np.cumsum(lengths)
        run = np.searchsorted(ends, numbers, side="right")
        places = self._ends[1::2][run] - (ends[run] - numbers)
        return np.stack([places // self.height, places % self.height], axis=1)

    def mask(self) -> npt.NDArray[np.bool_]:
        """(H, W) bool."""
        values = np.arange(len(self.runs)) % 2 == 1
        return np.repeat(values, self.runs).reshape(self.width, self.height).T


def _parse(text: bytes, pixels: int) -> Runs:
    """Parse the runs of a mask, in memory of a few bytes for each of them; see the module's description.

    Raises:
        ValueError: as for `Rle`.
    """
    characters = np.frombuffer(text, dtype=np.uint8)
    count = np.count_nonzero(characters < 48 + _MORE)
    if count > pixels + 2:
        raise ValueError(f"{count} runs in a mask of {pixels} pixels")
    runs = np.empty(count, dtype=np.uint32)
    before = np.zeros(2, dtype=np.int64)  # the last two runs, older first
    start = done = total = 0
    while start < len(characters):
        values, used = _read_groups(characters[start : start + _CHUNK])
        _add_differences(values, before, done)
        if not 0 <= values.min() <= values.max() <= pixels:
            raise ValueError("a run that is negative or longer than the mask")
        runs[done : done + len(values)] = values
        before = np.concatenate((before, values))[-2:]
        start, done, total = start + used, done + len(values), total + int(values.sum())
    if total != pixels:
        raise ValueError(f"runs of {total} pixels in a mask of {pixels}")
    return runs


def _read_groups(characters: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.int64], int]:
    """Read the whole groups: the number of each, and how many characters they take."""
    codes = characters.astype(np.int64) - 48
    ends = np.flatnonzero(codes & _MORE == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))[: len(ends)]
    lengths = ends - starts + 1
    if not len(ends) or lengths.max() > _LONGEST_GROUP or codes.min() < 0 or codes.max() >= 2 * _MORE:
        raise ValueError("malformed run lengths")
    used = int(ends[-1]) + 1
    if len(characters) < _CHUNK and used < len(characters):
        raise ValueError("malformed run lengths")
    digit = np.arange(used) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes[:used] & (_MORE - 1)) << (5 * digit), starts)
    return values - np.where(codes[ends] & _SIGN, np.int64(1) << (5 * lengths), 0), used


def _add_differences(values: npt.NDArray[np.int64], before: npt.NDArray[np.int64], done: int) -> None:
    """Turn differences into runs, in place: each of the fourth and later adds to the run two before it.

    Args:
        values: of a chunk.
        before: the last two runs of the chunks before.
        done: how many runs these have.
    """
    for parity in (0, 1):
        own = values[parity::2]
        if not len(own):
            continue
        if done + parity >= 3:
            own[0] += before[parity]
        first = 1 if done == 0 and parity == 0 else 0
        own[first:] = np.cumsum(own[first:])
