"""From batches of images to records in the store's writer, with device, copies, disk and host at work at the same time.

While the device computes a batch, the one before it is copied to the host, and earlier ones are checksummed and written
by the writer's thread. The host waits for the device once a batch, after it has launched the next one. Host memory is a
few batches of records, which are used again and again and written from where they were copied to.
"""

import queue
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.functional import pad

from efficientsam3.data.loader import ImageBatch
from efficientsam3.embed.batches import embed_batch, refuse_unstorable
from efficientsam3.models.teacher import Teacher
from efficientsam3.runtime.errors import UserError
from efficientsam3.store.encodings import Codec
from efficientsam3.store.gather import crop_to_images
from efficientsam3.store.manifest import StoreManifest
from efficientsam3.store.records import SEED_BYTES, seed_bytes, storable
from efficientsam3.store.statistics import ChannelStatistics, measure_moments
from efficientsam3.store.writer import BackgroundWriter

BUFFERS = 4  # batches of records in host memory: one that arrives, and others that wait to be written or are


@dataclass(frozen=True)
class Buffer:
    """Host memory for a batch."""

    records: torch.Tensor  # (B, record_size) uint8; the seeds are filled in by the host
    summary: torch.Tensor  # (B, 1 + 2 D) float64: 1 if storable, else 0; then mean and m2, see `measure_moments`


class HostCopies:
    """Copies to host memory; on CUDA in a stream of their own, beside what the device computes."""

    def __init__(self, device: torch.device) -> None:
        """Copies from that device."""
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        # Elsewhere launching a batch computes it, or copying waits for it: then it need not wait for the next one.
        self.ahead = int(self._stream is not None)  # batches to launch before one is waited for

    def allocate(self, count: int, record_size: int, embed_dim: int) -> Buffer:
        """Memory for so many images."""
        make = partial(torch.empty, pin_memory=self._stream is not None)
        return Buffer(
            make((count, record_size), dtype=torch.uint8), make((count, 1 + 2 * embed_dim), dtype=torch.float64)
        )

    def start(self, payloads: torch.Tensor, summary: torch.Tensor, buffer: Buffer) -> Callable[[], object]:
        """Copy (B, payload_size) uint8 and (B, 1 + 2 D) float64 into a buffer; returns what waits for them."""
        records, summaries = buffer.records[: len(payloads)], buffer.summary[: len(summary)]
        if self._stream is None:
            records[:, SEED_BYTES:].copy_(payloads)
            summaries.copy_(summary)
            return lambda: None
        # In one piece, since only that is copied asynchronously.
        copied = ((pad(payloads, (SEED_BYTES, 0)), records), (summary, summaries))
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for source, target in copied:
                target.copy_(source, non_blocking=True)
                source.record_stream(self._stream)  # or its memory would be given away while it is still read
            arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            arrived.record(self._stream)
        return arrived.synchronize


@dataclass(frozen=True)
class _Launched:
    batch: ImageBatch
    cells: list[int]  # of each image
    buffer: Buffer
    wait: Callable[[], object]  # for the device's results


class Pipeline:
    """The teacher, and what becomes of its embeddings."""

    def __init__(
        self,
        teacher: Teacher,
        manifest: StoreManifest,
        codec: Codec,
        device: torch.device,
        batch_size: int,
        copies: HostCopies | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            teacher: on `device`.
            manifest: the store's.
            codec: the store's.
            device: where to compute.
            batch_size: images of the largest batch.
            copies: by default those of the device.
        """
        self._teacher = teacher
        self._manifest = manifest
        self._codec = codec
        self._device = device
        self._batch_size = batch_size
        self._copies = copies or HostCopies(device)
        self._free: queue.SimpleQueue[Buffer] = queue.SimpleQueue()
        self._made = 0

    def run(self, batches: Iterable[ImageBatch], writer: BackgroundWriter) -> Generator[ImageBatch, None, None]:
        """Embed batches; each is given once its records are in the writer's queue.

        Whatever ends this, also an exception in `batches` or `close`, first hands over what was launched.

        Args:
            batches: of images.
            writer: of the store, with a queue that has no bound.

        Raises:
            UserError: an embedding is not finite in float16; the sentence names its image. Or a record cannot be
                written.
        """
        launched: deque[_Launched] = deque()
        try:
            for batch in batches:
                if batch.image_ids:
                    launched.append(self._launch(batch))
                else:
                    yield batch
                if len(launched) > self._copies.ahead:
                    yield self._hand_over(launched.popleft(), writer)
            while launched:
                yield self._hand_over(launched.popleft(), writer)
        except BaseException:
            with suppress(UserError):  # the first error is the one to tell
                while launched:
                    self._hand_over(launched.popleft(), writer)
            raise

    def _launch(self, batch: ImageBatch) -> _Launched:
        """Have the device compute a batch and copy it to the host; on CUDA, nothing here waits for it."""
        embeddings = embed_batch(self._teacher, batch, self._device)
        payloads = self._codec.encode(embeddings)
        # Statistics are of what is stored, so that they can be made again from the store; one by one, for the memory.
        stored: Iterator[torch.Tensor] = (self._codec.decode(payload[None])[0] for payload in payloads)
        cells, rows = [], []
        for grid in crop_to_images(stored, batch.content_sizes, self._manifest):
            cells.append(grid[0].numel())
            rows.append(measure_moments(grid).flatten())
        moments = torch.stack(rows)
        summary = torch.cat([storable(embeddings)[:, None].to(moments.device), moments], dim=1)
        buffer = self._take()
        return _Launched(batch, cells, buffer, self._copies.start(payloads, summary, buffer))

    def _hand_over(self, launched: _Launched, writer: BackgroundWriter) -> ImageBatch:
        launched.wait()
        batch, buffer, count = launched.batch, launched.buffer, len(launched.batch.image_ids)
        summary = buffer.summary[:count].clone()  # the buffer will be used again
        refuse_unstorable(batch, summary[:, 0].tolist())
        records = buffer.records[:count].numpy()
        records[:, :SEED_BYTES] = seed_bytes(batch.seeds.numpy())
        moments = summary[:, 1:].reshape(count, 2, -1)
        columns = (batch.image_ids, records, launched.cells, moments, batch.stamps)
        for image_id, record, cells, (mean, m2), stamp in zip(*columns, strict=True):
            writer.append(image_id, record, ChannelStatistics(cells, mean, m2), stamp)
        writer.after(partial(self._free.put, buffer))
        return batch

    def _take(self) -> Buffer:
        """Memory for a batch, waiting for the writer once there are `BUFFERS`."""
        if self._made < BUFFERS and self._free.empty():
            self._made += 1
            return self._copies.allocate(self._batch_size, self._manifest.record_size, self._manifest.embed_dim)
        return self._free.get()
