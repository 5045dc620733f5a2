"""The stored embeddings of batches of pictures, read in the training's process while it computes on earlier batches."""

import mmap
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import torch

from efficientsam3.runtime.errors import UserError
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.train.dataset import STAND_IN, PictureBatch

_AHEAD = 2  # batches that are being read while one is computed
_THREADS = 4  # a disk has several reads to work on; reading and checksums need no interpreter lock
_TENSORS = ("pixels", "content_sizes", "records", "weights")


@dataclass
class DistillBatch(PictureBatch):
    """Pictures with undecoded embeddings."""

    records: torch.Tensor  # (B, record_size) uint8; (B, 0) where the store does not hold every one
    weights: torch.Tensor  # (B,) float32: 0 of a stand-in, or of a picture whose record is damaged, else 1

    def to(self, device: torch.device) -> Self:
        """Move it, without waiting where its memory is pinned."""
        for name in _TENSORS:
            setattr(self, name, getattr(self, name).to(device, non_blocking=True))
        return self

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All that lies on a device."""
        return tuple(getattr(self, name) for name in _TENSORS)


def with_records(
    batches: Iterable[PictureBatch], store: EmbeddingStore, device: torch.device
) -> Iterator[DistillBatch]:
    """The batches, in their order, with the records of their rows.

    Threads read each record from the file into the batch's own memory, the only copy that is made on the CPU, two
    batches ahead. For a GPU that memory is pinned; PyTorch's allocator gives it out again once it has been copied from.
    A damaged record comes as zeros of weight 0, which every codec decodes to finite values, and as its sentence in
    `broken`. The threads end with the iterator, be it at its end, by an error, or because it is closed or let go.
    """
    pool = ThreadPoolExecutor(_THREADS, "record-reader")
    reading: deque[_Reading] = deque()
    try:
        for batch in batches:
            reading.append(_Reading(batch, store, device.type == "cuda", pool))
            if len(reading) > _AHEAD:
                yield reading.popleft().finish()
        while reading:
            yield reading.popleft().finish()
    finally:
        pool.shutdown(cancel_futures=True)


class _Reading:
    """A batch whose records are on their way."""

    def __init__(self, batch: PictureBatch, store: EmbeddingStore, pinned: bool, pool: ThreadPoolExecutor) -> None:
        self._batch, self._pinned = batch, pinned
        whole = store.holds([row for row in batch.rows if row != STAND_IN])
        width = store.manifest.record_size if whole else 0
        self._records = _allocate(len(batch.rows), width, pinned)
        places = zip(batch.rows, self._records, strict=True) if whole else ()
        self._reads: list[Future[str | None]] = [pool.submit(_read, store, *place) for place in places]

    def finish(self) -> DistillBatch:
        """Wait for the records."""
        batch, broken = self._batch, list(self._batch.broken)
        weights = torch.tensor([float(row != STAND_IN) for row in batch.rows], pin_memory=self._pinned)
        for number, read in enumerate(self._reads):
            if (sentence := read.result()) is not None:
                broken.append(sentence)
                weights[number] = 0
        return DistillBatch(
            batch.image_ids, batch.pixels, batch.content_sizes, batch.rows, broken, self._records, weights
        )


def _allocate(count: int, width: int, pinned: bool) -> torch.Tensor:
    """Memory for records, (count, width) uint8, of any content.

    Pinned memory is used again and again by PyTorch's allocator. Other memory comes as fresh pages, which cost several
    times what reading into them does unless they are huge, see docs/training.md.
    """
    if pinned or not count * width or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty((count, width), dtype=torch.uint8, pin_memory=pinned)
    memory = mmap.mmap(-1, count * width, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8).reshape(count, width)


def _read(store: EmbeddingStore, row: int, record: torch.Tensor) -> str | None:
    """Fill `record`, with zeros where there is nothing to read; returns what is wrong with a damaged one."""
    if row == STAND_IN:
        record.zero_()
        return None
    try:
        store.read_into(row, record)
    except UserError as error:
        record.zero_()
        return str(error)
    return None
