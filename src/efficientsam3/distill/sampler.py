"""A reading order for disks that hate random reads."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset, DistributedSampler


class WindowSampler(DistributedSampler[Any]):
    """Shuffles records within windows of neighbours, and the windows among each other; every record once an epoch.

    Like its base, it repeats a few records so that all processes take as many steps. The processes share each window,
    so that together they read a stretch of the store front to back.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        file_order: npt.NDArray[np.int64],
        window: int,
        world_size: int,
        rank: int,
        seed: int,
    ) -> None:
        """Prepare.

        Args:
            dataset: what is sampled.
            file_order: (N,) its items in the order in which their records lie on the disk.
            window: records a window.
            world_size: number of processes.
            rank: of this one.
            seed: of all processes alike.
        """
        super().__init__(dataset, world_size, rank, seed=seed)
        self._file_order, self._window = file_order, window

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.epoch))
        starts = generator.permutation(np.arange(0, len(self._file_order), self._window))
        windows = [generator.permutation(self._file_order[start : start + self._window]) for start in starts]
        order = np.resize(np.concatenate(windows), self.total_size)  # the first ones fill up the end
        return iter(order[self.rank :: self.num_replicas].tolist())
