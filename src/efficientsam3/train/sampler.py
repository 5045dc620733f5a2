"""The order in which an epoch reads its images, and who reads which."""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from efficientsam3.data.loader import PADDING


class EpochSampler(Sampler[int]):
    """A new order each epoch, the same on every process; each image once, from any position on.

    The processes take the order's images by turns, so that after any number of batches everything before one position
    has been seen and nothing behind it: a position, and not a list, is what a checkpoint needs, and any number of
    processes can continue from there.
    """

    def __init__(
        self,
        count: int,
        world_size: int,
        rank: int,
        seed: int,
        file_order: npt.NDArray[np.int64] | None = None,
        window: int = 0,
    ) -> None:
        """Prepare.

        Args:
            count: images an epoch.
            world_size: number of processes.
            rank: of this one.
            seed: of all processes alike.
            file_order: (count,) the images in the order in which their records lie on the disk; needed for `window`.
            window: shuffle within windows of so many neighbouring records, and the windows among each other, for disks
                that hate random reads; 0 shuffles over everything.
        """
        assert not window or file_order is not None
        self._count, self._world_size, self._rank, self._seed = count, world_size, rank, seed
        self._file_order, self._window = file_order, window
        self._epoch, self._position = 0, 0

    def set_epoch(self, epoch: int, position: int = 0) -> None:
        """Choose the epoch, and how many images of its order, over all processes, have been seen already."""
        self._epoch, self._position = epoch, position

    def __len__(self) -> int:
        return math.ceil((self._count - self._position) / self._world_size)

    def __iter__(self) -> Iterator[int]:
        rest = self._order()[self._position :]
        padded = np.full(len(self) * self._world_size, PADDING, np.int64)
        padded[: len(rest)] = rest
        return iter(padded[self._rank :: self._world_size].tolist())

    def _order(self) -> npt.NDArray[np.int64]:
        generator = np.random.default_rng((self._seed, self._epoch))
        if self._file_order is None or not self._window:
            return generator.permutation(self._count)
        starts = generator.permutation(np.arange(0, self._count, self._window))
        windows = [generator.permutation(self._file_order[start : start + self._window]) for start in starts]
        return np.concatenate(windows)
