"""What a student learns: the teacher's embeddings, read from a store or computed in the loop."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from efficientsam3.data.images import ImageStamp
from efficientsam3.data.loader import SeedOf
from efficientsam3.embed.batches import (
    check_storable,
    embed_batch,
    image_batches,
    load_teacher,
    not_storable,
    seed_by_id,
)
from efficientsam3.embed.plan import EmbedPlan, check_space, missing_images, pick
from efficientsam3.embed.setup import prepare_store
from efficientsam3.models.teacher import Teacher
from efficientsam3.runtime.distributed import Process, all_gather, barrier
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.runtime.progress import progress_bar
from efficientsam3.store.gather import measure_batch
from efficientsam3.store.manifest import StoreManifest, read_store_manifest
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.store.records import SEED_BYTES, pack_records, storable
from efficientsam3.store.shards import Shard
from efficientsam3.store.statistics import ChannelStatistics, gathered_statistics, store_statistics
from efficientsam3.store.writer import BackgroundWriter
from efficientsam3.train.batches import Records, TrainBatch

logger = logging.getLogger(LOGGER_NAME)
MEASURED_IMAGES = 256  # training images that the moments of computed targets are taken from


class Targets(Records, Protocol):
    """The teacher's embeddings of a training's images.

    An image's row says where its embedding is. What `Records` offers is read ahead while the device computes; calling
    the targets gives a batch's embeddings from what was read, or computes them.
    """

    manifest: StoreManifest  # shape, preprocessing and augmentation of the embeddings

    def rows(self, ids: npt.NDArray[np.bytes_]) -> npt.NDArray[np.int64]:
        """(N,) rows of image ids; -1 where there is no embedding."""
        ...

    def file_order(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The positions in `rows` in the order in which their records lie on the disk."""
        ...

    @property
    def seed_of(self) -> SeedOf:
        """Gives the seed of an image's augmentation; goes to DataLoader workers."""
        ...

    def known_moments(self, needed: bool) -> ChannelStatistics | None:
        """Moments of the embeddings that are known before work begins; None where they are not.

        Raises:
            UserError: they are needed, can be known by then, and are not.
        """
        ...

    def measure_moments(self, process: Process) -> ChannelStatistics:
        """Measure what was not known, with the targets open; all processes must call this and get the same.

        Raises:
            UserError: no image can be read, or an embedding is not finite.
        """
        ...

    def measured_images(self) -> str | None:
        """SHA-256 of the ids of the images that `measure_moments` takes; None where nothing is measured."""
        ...

    def open(self, process: Process) -> AbstractContextManager[None]:
        """Get ready to give embeddings; on all processes.

        Raises:
            UserError: a cache was begun with other settings, or the disk cannot hold it.
        """
        ...

    def __call__(self, batch: TrainBatch, pixels: torch.Tensor) -> torch.Tensor:
        """A batch's embeddings (B, D, E, E) float32, on the device of its normalised pixels (B, 3, S, S) float32."""
        ...

    def embed_one(self, row: int, pixels: torch.Tensor) -> torch.Tensor:
        """One image's embedding (1, D, E, E) float32, for its normalised pixels (1, 3, S, S) float32.

        Raises:
            UserError: its record is damaged.
        """
        ...

    def end_epoch(self) -> None:
        """Called on all processes after each epoch."""
        ...


class StoredTargets:
    """The embeddings in a store."""

    def __init__(self, store: EmbeddingStore) -> None:
        """Read from `store`."""
        self.store = store
        self.manifest = store.manifest

    def rows(self, ids: npt.NDArray[np.bytes_]) -> npt.NDArray[np.int64]:
        """See `Targets`."""
        return self.store.rows(ids)

    def file_order(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """See `Targets`."""
        return self.store.index.in_file_order(rows)

    @property
    def seed_of(self) -> SeedOf:
        """See `Targets`."""
        return self._seed

    def _seed(self, image_id: str, row: int) -> int:
        """The stored seed; 0 where nothing is drawn from it, because reading it costs one disk seek."""
        return 0 if self.manifest.augmentation.is_off else self.store.read_seed(row)

    def known_moments(self, needed: bool) -> ChannelStatistics | None:
        """See `Targets`; those that were gathered for the whole store."""
        return (store_statistics if needed else gathered_statistics)(self.store.directory)

    def measure_moments(self, process: Process) -> ChannelStatistics:
        """See `Targets`; a store's are known from the beginning."""
        raise AssertionError("known_moments has refused a store without them")

    def measured_images(self) -> None:
        """See `Targets`."""

    def record_size(self, rows: Sequence[int]) -> int:
        """See `Records`."""
        return self.manifest.record_size

    def read_into(self, row: int, record: torch.Tensor) -> None:
        """See `Records`."""
        self.store.read_into(row, record)

    def check_image(self, row: int, image: ImageStamp) -> None:
        """See `Records`."""
        self.store.check_image(row, image)

    def open(self, process: Process) -> AbstractContextManager[None]:
        """See `Targets`; the store is open already."""
        return nullcontext()

    def __call__(self, batch: TrainBatch, pixels: torch.Tensor) -> torch.Tensor:
        """See `Targets`; decoded on the batch's device."""
        return self.store.decode(batch.records)[1]

    def embed_one(self, row: int, pixels: torch.Tensor) -> torch.Tensor:
        """See `Targets`."""
        return self.store.decode(self.store.read(row)[None])[1].to(pixels.device)

    def end_epoch(self) -> None:
        """See `Targets`."""


class ComputedTargets:
    """Embeddings that the teacher computes in the loop: every epoch again, or once into a cache."""

    def __init__(self, plan: EmbedPlan, cached: bool) -> None:
        """Compute what `plan` describes; with `cached`, read and extend the store that it names."""
        self.plan = plan
        self.manifest = plan.manifest
        self._codec = self.manifest.build_codec(plan.store_dir)
        self._ids = np.unique(np.concatenate([np.empty(0, "S1"), *(split.ids for split in plan.splits)]))
        self._cached = cached
        self._teacher: Teacher | None = None
        self._shard: Shard | None = None
        self._writer: BackgroundWriter | None = None
        self._written: set[str] = set()
        self._reread()

    def rows(self, ids: npt.NDArray[np.bytes_]) -> npt.NDArray[np.int64]:
        """See `Targets`; every image has a row, because every one can be computed."""
        return np.searchsorted(self._ids, ids)

    def file_order(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """See `Targets`; computed embeddings lie nowhere, so any order is theirs."""
        return np.arange(len(rows))

    @property
    def seed_of(self) -> SeedOf:
        """See `Targets`; what an image's record has, or will have."""
        return partial(seed_by_id, self.manifest.seed)

    def known_moments(self, needed: bool) -> None:
        """See `Targets`; nothing is known before the teacher has seen an image."""

    def record_size(self, rows: Sequence[int]) -> int:
        """See `Records`; as of the epoch's beginning."""
        return self.manifest.record_size if (self._cache_rows[list(rows)] >= 0).all() else 0

    def read_into(self, row: int, record: torch.Tensor) -> None:
        """See `Records`; from the cache."""
        assert self._cache is not None
        self._cache.read_into(int(self._cache_rows[row]), record)

    def check_image(self, row: int, image: ImageStamp) -> None:
        """See `Records`; as of the cache."""
        assert self._cache is not None
        self._cache.check_image(int(self._cache_rows[row]), image)

    @contextmanager
    def open(self, process: Process) -> Iterator[None]:
        """See `Targets`; loads the teacher, and prepares the cache where there is one."""
        if self._cached:
            prepare_store(self.plan, process)
            self._reread()
            check_space(self.plan, missing_images(self.plan))
            barrier()  # no process writes before all have read what is there
            self._shard = Shard(self.plan.store_dir, process.rank)
        self._teacher = load_teacher(self.plan, process)
        try:
            yield
        finally:
            self._close_writer()
            self._teacher = None

    def __call__(self, batch: TrainBatch, pixels: torch.Tensor) -> torch.Tensor:
        """See `Targets`.

        What goes to the cache is returned as it will be read from there, so that all epochs have the same
        targets.

        Raises:
            UserError: an embedding that is to be stored is not finite in float16; or it cannot be written.
        """
        if batch.records.shape[1]:
            return self._codec.decode(batch.records[:, SEED_BYTES:])
        embeddings = self._embed(pixels)
        if self._shard is None:
            return embeddings
        payloads = self._codec.encode(embeddings)
        self._write(batch, embeddings, payloads)
        return self._codec.decode(payloads)

    def embed_one(self, row: int, pixels: torch.Tensor) -> torch.Tensor:
        """See `Targets`; computed, whatever the cache has."""
        return self._embed(pixels)

    def end_epoch(self) -> None:
        """See `Targets`; makes what was written to the cache readable."""
        if self._shard is None:
            return
        self._close_writer()
        barrier()  # no process reads before all have written
        self._reread()
        self._written.clear()
        barrier()  # no process writes before all have read

    def measure_moments(self, process: Process) -> ChannelStatistics:
        """See `Targets`; those of the first training images by id."""
        assert self._teacher is not None, "the targets are open"
        count = min(MEASURED_IMAGES, len(self.plan.splits[0]))
        logger.info("measuring the teacher's embeddings of the first %d training images", count)
        everything = [np.arange(len(split)) for split in self.plan.splits]
        share = pick(everything, np.arange(process.rank, count, process.world_size))
        found: dict[str, ChannelStatistics] = {}
        problem: UserError | None = None
        with progress_bar("measure", len(share[0]), process.is_main) as advance:
            for batch in image_batches(self.plan, share, process):
                if batch.image_ids:
                    embeddings = embed_batch(self._teacher, batch, process.device)
                    try:
                        check_storable(batch, embeddings)
                    except UserError as error:  # raised when all processes are past the gathering below
                        problem = error
                        break
                    if self._cached:
                        embeddings = self._codec.decode(self._codec.encode(embeddings))
                    moments = measure_batch(embeddings, batch.content_sizes, self.manifest)
                    found |= dict(zip(batch.image_ids, moments, strict=True))
                advance(len(batch.image_ids) + len(batch.broken))
        shares = all_gather((found, None if problem is None else str(problem)))
        for _, sentence in shares:
            if sentence is not None:
                raise UserError(sentence)
        everyone = {image_id: moments for of_rank, _ in shares for image_id, moments in of_rank.items()}
        if not everyone:
            raise UserError(
                f"None of the first {count} training images in {self.plan.splits[0].root} can be read, so there "
                "are no statistics to standardise by: see `efficientsam3 data check`."
            )
        total = ChannelStatistics.nothing(self.manifest.embed_dim)
        for image_id in sorted(everyone):  # one order, whatever the number of processes
            total = total.merge(everyone[image_id])
        return total

    def measured_images(self) -> str:
        """See `Targets`."""
        return hashlib.sha256(b"\n".join(self.plan.splits[0].ids[:MEASURED_IMAGES])).hexdigest()

    def _embed(self, pixels: torch.Tensor) -> torch.Tensor:
        assert self._teacher is not None, "the targets are open while there are batches"
        # Copied out of inference mode: the loss keeps it for the backward pass.
        return self._teacher(pixels).clone()

    def _reread(self) -> None:
        """Find out what the cache has by now."""
        there = self._cached and read_store_manifest(self.plan.store_dir) is not None
        self._cache = EmbeddingStore(self.plan.store_dir) if there else None
        self._cache_rows = self._cache.rows(self._ids) if self._cache else np.full(len(self._ids), -1, np.int64)

    def _write(self, batch: TrainBatch, embeddings: torch.Tensor, payloads: torch.Tensor) -> None:
        assert self._shard is not None
        self._writer = self._writer or BackgroundWriter(self._shard, self.manifest.record_size)
        records = pack_records(batch.seeds.numpy(), payloads.cpu().numpy())
        columns = zip(batch.image_ids, batch.rows, records, storable(embeddings).tolist(), batch.stamps, strict=True)
        for image_id, row, record, is_finite, stamp in columns:
            if image_id in self._written or not image_id or self._cache_rows[row] >= 0:
                continue
            if not is_finite:
                raise not_storable(image_id)
            self._writer.append(image_id, record, image=stamp)
            self._written.add(image_id)

    def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.__exit__(None, None, None)
