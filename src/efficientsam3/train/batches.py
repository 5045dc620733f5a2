"""Training batches: images with their stored embeddings, read and copied ahead while the device computes."""

import mmap
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, Self

import torch

from efficientsam3.data.images import UNKNOWN_IMAGE, ImageStamp
from efficientsam3.data.loader import NO_ROW, ImageBatch
from efficientsam3.runtime.device import copy_to
from efficientsam3.runtime.errors import UnreadableError, UserError
from efficientsam3.train.stages import Label

_AHEAD = 2  # batches that are being read while one is computed
_THREADS = 4  # a disk has several reads to work on; reading and checksums need no interpreter lock
_TENSORS = ("pixels", "content_sizes", "records", "weights")


@dataclass
class TrainBatch(ImageBatch):
    """Images with undecoded embeddings."""

    records: torch.Tensor  # (B, record_size) uint8; (B, 0) where they are not all stored
    weights: torch.Tensor  # (B,) float32: 0 for a stand-in or an image whose record is damaged, else 1

    def to(self, device: torch.device) -> Self:
        """Move it, see `copy_to`."""
        for name in _TENSORS:
            setattr(self, name, copy_to(device, getattr(self, name)))
        return self

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All that lies on a device."""
        return tuple(getattr(self, name) for name in _TENSORS)


class Records(Protocol):
    """Where the records of a batch are read from."""

    def record_size(self, rows: Sequence[int]) -> int:
        """Bytes of one record; 0 where not all of these rows' records are stored, so that none is read."""
        ...

    def read_into(self, row: int, record: torch.Tensor) -> None:
        """Read one record into (record_size,) uint8.

        Raises:
            UnreadableError: the system cannot read it.
            UserError: it is damaged.
        """
        ...

    def check_image(self, row: int, image: ImageStamp) -> None:
        """Compare an image's file with the one that a row's record was computed from.

        Raises:
            UserError: they differ.
        """
        ...


def with_records(batches: Iterable[ImageBatch], records: Records, device: torch.device) -> Iterator[TrainBatch]:
    """The batches, in their order, with the records of their rows.

    Threads read each record from the file into the batch's own memory, the only copy that is made on the CPU, two
    batches ahead. For a GPU that memory is pinned; PyTorch's allocator gives it out again once it has been copied from.
    A damaged record, or one of another image, comes as zeros of weight 0, which every codec decodes to finite values,
    and as its sentence in `broken`. The threads end with the iterator, however it ends: exhausted, failed, closed or
    garbage-collected.
    """
    pool = ThreadPoolExecutor(_THREADS, "record-reader")
    reading: deque[_Reading] = deque()
    try:
        for batch in batches:
            reading.append(_Reading(batch, records, device.type == "cuda", pool))
            if len(reading) > _AHEAD:
                yield reading.popleft().finish()
        while reading:
            yield reading.popleft().finish()
    finally:
        pool.shutdown(cancel_futures=True)


class _Reading:
    """A batch whose records are on their way."""

    def __init__(self, batch: ImageBatch, records: Records, pinned: bool, pool: ThreadPoolExecutor) -> None:
        self._batch = batch
        self._pinned = pinned
        size = records.record_size([row for row in batch.rows if row != NO_ROW])
        self._records = _allocate(len(batch.rows), size, pinned)
        stamps = batch.stamps or [UNKNOWN_IMAGE] * len(batch.rows)
        places = zip(batch.rows, self._records, stamps, strict=True) if size else ()
        self._reads: list[Future[str | None]] = [pool.submit(_read, records, *place) for place in places]

    def finish(self) -> TrainBatch:
        """Wait for the records."""
        batch, broken = self._batch, list(self._batch.broken)
        weights = torch.tensor([float(row != NO_ROW) for row in batch.rows], pin_memory=self._pinned)
        for number, read in enumerate(self._reads):
            if (sentence := read.result()) is not None:
                broken.append(sentence)
                weights[number] = 0
        return TrainBatch(**vars(batch) | {"broken": broken}, records=self._records, weights=weights)


def _allocate(count: int, size: int, pinned: bool) -> torch.Tensor:
    """Memory for records, (count, size) uint8, of any content.

    Pinned memory is used again and again by PyTorch's allocator. Other memory comes as fresh pages, which cost several
    times what reading into them does unless they are huge, see docs/training.md.
    """
    if pinned or not count * size or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty((count, size), dtype=torch.uint8, pin_memory=pinned)
    memory = mmap.mmap(-1, count * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8).reshape(count, size)


def _read(records: Records, row: int, record: torch.Tensor, image: ImageStamp) -> str | None:
    """Fill `record`, with zeros where there is nothing to read; returns what is wrong with a damaged or foreign one."""
    if row == NO_ROW:
        record.zero_()
        return None
    try:
        records.check_image(row, image)
        records.read_into(row, record)
    except UnreadableError:  # so will others be
        raise
    except UserError as error:
        record.zero_()
        return str(error)
    return None


def copy_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream to copy in while the device computes; None where there is none.

    One serves all passes over the data: memory that was given out in a stream is given out again in that stream alone,
    so each further one would hold batches of its own.
    """
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def on_device(
    batches: Iterable[TrainBatch], device: torch.device, copying: torch.cuda.Stream | None, stage: Label
) -> Iterator[TrainBatch]:
    """The batches on `device`; with a `copy_stream`, the next one is copied while it computes on the one before."""
    if copying is None:
        for batch in batches:
            with stage("transfer"):
                batch.to(device)
            yield batch
        return
    waiting: TrainBatch | None = None
    for batch in batches:
        with torch.cuda.stream(copying), stage("transfer"):
            batch.to(device)
        if waiting is not None:
            yield _arrived(waiting, copying, device)
        waiting = batch
    if waiting is not None:
        yield _arrived(waiting, copying, device)


def _arrived(batch: TrainBatch, copying: torch.cuda.Stream, device: torch.device) -> TrainBatch:
    computing = torch.cuda.current_stream(device)
    computing.wait_stream(copying)
    for tensor in batch.tensors:
        tensor.record_stream(computing)  # or its memory would be given away while it is still read
    return batch
