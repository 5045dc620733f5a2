"""Where each image's record is, in arrays instead of Python objects: small and shared even with 11 million entries."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from efficientsam3.data.listing import ids_from_tensor, ids_to_tensor
from efficientsam3.runtime.errors import UserError
from efficientsam3.store.binding import read_bound_lines
from efficientsam3.store.shards import MOST_ID_BYTES, Shard

_NEWLINE = 10


class StoreIndex:
    """Image ids, sorted and unique, with shard and position of each one's record.

    The arrays are tensors: forked workers share their pages, spawned ones get them through shared memory.
    """

    def __init__(self, shards: Sequence[Shard], record_size: int) -> None:
        """Read the key files.

        Raises:
            UserError: a shard's record file is shorter than its keys promise, or its keys are no longer those of its
                records.
        """
        tables = []
        for shard in shards:
            tables.append(parse_keys(read_bound_lines(shard, record_size)[0]))
            if tables[-1].itemsize > MOST_ID_BYTES:
                raise UserError(
                    f"{shard.keys_path} has an id of {tables[-1].itemsize} bytes, which no image's can be: restore the "
                    "file from a copy."
                )
        counts = [len(table) for table in tables]
        ids = np.concatenate([np.empty(0, "S1"), *tables])
        shard_of = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        position_of = np.concatenate([np.empty(0, np.int64), *map(np.arange, counts)])
        order = _sort_order(ids)
        ids = ids[order]
        # The first of equal ids stays: two runs on different shards may both have embedded an image.
        first = np.concatenate([[True], ids[1:] != ids[:-1]])[: len(ids)]
        ids, order = ids[first], order[first]
        self._ids = ids_to_tensor(ids)
        self._shard_of, self._position_of = torch.from_numpy(shard_of[order]), torch.from_numpy(position_of[order])

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> npt.NDArray[np.bytes_]:
        """(N,) bytes, sorted, unique."""
        return ids_from_tensor(self._ids)

    def place(self, row: int) -> tuple[int, int]:
        """Which shard has a row's record, and at which position there."""
        return int(self._shard_of[row]), int(self._position_of[row])

    def places(self, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """`place` of many rows at once."""
        return self._shard_of.numpy()[rows], self._position_of.numpy()[rows]

    def rows(self, ids: npt.NDArray[np.bytes_]) -> npt.NDArray[np.int64]:
        """Rows of image ids, -1 where there is none."""
        own = self.ids
        if len(own) == 0 or len(ids) == 0:
            return np.full(len(ids), -1, np.int64)
        rows = np.searchsorted(own, ids)
        rows[rows == len(own)] = 0
        return np.where(own[rows] == ids, rows, -1)

    def in_file_order(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The positions in `rows` that visit its records shard by shard, front to back."""
        return np.lexsort([self._position_of.numpy()[rows], self._shard_of.numpy()[rows]])


def parse_keys(content: bytes) -> npt.NDArray[np.bytes_]:
    """(N,) ids from a key file's whole lines, without a Python object for each."""
    data = np.frombuffer(content, np.uint8)
    ends = np.flatnonzero(data == _NEWLINE)
    starts = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
    lengths = ends - starts
    width = max(1, int(lengths.max(initial=0)))
    table = np.zeros((len(ends), width), np.uint8)
    for column in range(width):
        has = lengths > column
        table[has, column] = data[starts[has] + column]
    return table.view(f"S{width}").reshape(-1)


def _sort_order(ids: npt.NDArray[np.bytes_]) -> npt.NDArray[np.int64]:
    """A stable order; ids of up to 16 bytes are compared as two big-endian integers, many times faster than as text."""
    width = ids.dtype.itemsize
    if width > 16:
        return np.argsort(ids, kind="stable")
    words = np.zeros((len(ids), 16), np.uint8)
    words[:, :width] = ids.view(np.uint8).reshape(len(ids), width)
    numbers = words.view(">u8").astype(np.uint64)
    return np.lexsort([numbers[:, 1], numbers[:, 0]])
