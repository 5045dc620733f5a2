"""Per-channel mean and variance of the teacher's embeddings, kept next to each shard.

`rankN-statistics.safetensors` covers a shard's first records: float64 `mean` (D) and `m2` (D), int64
`cells`, and as metadata how many records those are and the CRC-32 of their key lines. It is a function of the shard's
content, so it is not part of the store's identity (the manifest), may lag behind the keys, and can be recomputed.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import atomic_path
from efficientsam3.store.shards import Shard, file_size, find_shards


@dataclass(frozen=True)
class ChannelStatistics:
    """Moments of D channels over a number of cells, in float64 on the CPU."""

    cells: int
    mean: torch.Tensor  # (D,) float64
    m2: torch.Tensor  # (D,) float64, sum of squared differences from the mean

    @classmethod
    def nothing(cls, embed_dim: int) -> Self:
        """Statistics of no cells."""
        return cls(0, torch.zeros(embed_dim, dtype=torch.float64), torch.zeros(embed_dim, dtype=torch.float64))

    @classmethod
    def measure(cls, cells: torch.Tensor) -> Self:
        """Statistics of (D, ...) float cells, on any device."""
        return cls(cells[0].numel(), *measure_moments(cells).cpu())

    def merge(self, other: "ChannelStatistics") -> "ChannelStatistics":
        """Statistics over the cells of both.

        Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance".
        """
        cells = self.cells + other.cells
        if cells == 0:
            return self
        share, difference = other.cells / cells, other.mean - self.mean
        m2 = self.m2 + other.m2 + difference.square() * (self.cells * share)
        return ChannelStatistics(cells, self.mean + difference * share, m2)

    @property
    def variance(self) -> torch.Tensor:
        """(D,) float64; the variance of these cells, not an estimate for a larger population."""
        return self.m2 / max(self.cells, 1)


def measure_moments(cells: torch.Tensor) -> torch.Tensor:
    """`mean` and `m2` of (D, ...) float cells, in two passes: (2, D) float64 on their device, not waiting for it.

    MPS has no float64: there it is computed, after waiting, on the CPU.
    """
    values = (cells.cpu() if cells.device.type == "mps" else cells).flatten(1).double()  # [D, n]
    mean = values.mean(dim=1)
    return torch.stack([mean, (values - mean[:, None]).square_().sum(dim=1)])


class ShardStatistics:
    """Statistics of a shard's first records, growing with the shard."""

    def __init__(self, shard: Shard, embed_dim: int) -> None:
        """Start with no records."""
        self._shard = shard
        self.records, self._keys_crc = 0, 0
        self.total = ChannelStatistics.nothing(embed_dim)

    def add(self, keys: Sequence[bytes], statistics: ChannelStatistics) -> None:
        """Add the shard's next records: their keys, and their joint statistics."""
        self.records += len(keys)
        self._keys_crc = _crc_of_lines(keys, self._keys_crc)
        self.total = self.total.merge(statistics)

    def write(self) -> None:
        """Write the file atomically; the keys that it covers must have been written.

        Raises:
            UserError: the file cannot be written.
        """
        tensors = {"cells": torch.tensor(self.total.cells), "mean": self.total.mean, "m2": self.total.m2}
        metadata = {"records": str(self.records), "keys_crc32": str(self._keys_crc)}
        with atomic_path(self._shard.statistics_path) as temporary:
            save_file(tensors, temporary, metadata)

    @classmethod
    def agrees(cls, shard: Shard, keys: list[bytes]) -> bool:
        """Whether the file, if there is one, covers some of `keys`, and these are as they were then.

        Raises:
            UserError: the file is damaged.
        """
        found = cls._load(shard)
        return found is None or found.records > len(keys) or _crc_of_lines(keys[: found.records]) == found._keys_crc

    @classmethod
    def read(cls, shard: Shard, keys: list[bytes]) -> "ShardStatistics | None":
        """Read a shard's file; None if there is no file, or its records are not the first of `keys`.

        Raises:
            UserError: the file is damaged.
        """
        read = cls._load(shard)
        if read is None or len(keys) < read.records or _crc_of_lines(keys[: read.records]) != read._keys_crc:
            return None
        return read

    @classmethod
    def _load(cls, shard: Shard) -> "ShardStatistics | None":
        path = shard.statistics_path
        if not file_size(path):
            return None
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                metadata = file.metadata()
                cells, mean, m2 = (file.get_tensor(name) for name in ("cells", "mean", "m2"))
            read = cls(shard, len(mean))
            read.records, read._keys_crc = int(metadata["records"]), int(metadata["keys_crc32"])
            read.total = ChannelStatistics(int(cells), mean, m2)
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}): delete it, it can be computed again.") from error
        return read


def _crc_of_lines(keys: Sequence[bytes], before: int = 0) -> int:
    return zlib.crc32(b"".join(key + b"\n" for key in keys), before)


def gathered_statistics(directory: Path) -> ChannelStatistics | None:
    """Statistics over every committed record of a store; None if some are missing, or the store is empty.

    An image in two shards counts twice.

    Raises:
        UserError: a file is damaged.
    """
    total: ChannelStatistics | None = None
    for shard in find_shards(directory):
        keys = shard.read_keys()
        found = ShardStatistics.read(shard, keys)
        if keys and (found is None or found.records < len(keys)):
            return None
        if found is not None:
            total = found.total if total is None else total.merge(found.total)
    return total if total is not None and total.cells else None


def store_statistics(directory: Path) -> ChannelStatistics:
    """`gathered_statistics` of a store that must have them.

    Raises:
        UserError: the statistics of some records are missing.
    """
    total = gathered_statistics(directory)
    if total is None:
        raise UserError(
            f"The store {directory} lacks the teacher's statistics of some of its records: run `efficientsam3 store "
            f"statistics {directory} --data-path DIR` once, with the dataset that was embedded; only DISTILL.NORMALIZE "
            "none trains without."
        )
    return total
