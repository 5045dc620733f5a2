"""The teacher in the training loop: no store is needed, and one may be kept as a cache."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch

from efficientsam3.config.schema import ExportConfig, ExportDataConfig, StoreConfig, TrainConfig
from efficientsam3.data.augment import augmentation_seed
from efficientsam3.embed.batches import export_augmentation, load_teacher, not_storable
from efficientsam3.embed.plan import ExportPlan, check_space, missing_images, plan_export
from efficientsam3.embed.setup import prepare_store
from efficientsam3.models.teacher import Teacher
from efficientsam3.runtime.distributed import Process, barrier
from efficientsam3.store.codecs import pack_records, storable
from efficientsam3.store.manifest import Manifest, read_manifest
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.store.shards import Shard
from efficientsam3.store.writer import BackgroundWriter
from efficientsam3.train.records import DistillBatch


class OnlineStore(EmbeddingStore):
    """Stands where a store would, and has a row for every image, but holds only the records that the cache has."""

    def __init__(self, plan: ExportPlan, config: ExportConfig, cached: bool) -> None:
        """Describe what an export by `config` would store; with `cached`, what is there already is read."""
        self.plan, self._cached, self._seed = plan, cached, config.SEED
        self.directory = plan.store_dir
        self._ids = np.unique(np.concatenate([np.empty(0, "S1"), *(split.ids for split in plan.splits)]))
        self.manifest = Manifest(
            embed_dim=config.DISTILL.EMBED_DIM,
            embed_size=config.DISTILL.EMBED_SIZE,
            preprocessing=plan.preprocessing,
            augmentation=export_augmentation(config),
            seed=config.SEED,
        )
        self.codec = self.manifest.build_codec(plan.store_dir)
        self.reread()

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> npt.NDArray[np.bytes_]:
        """Image ids, sorted, as a bytes array."""
        return self._ids

    def rows(self, ids: npt.NDArray[np.bytes_]) -> npt.NDArray[np.int64]:
        """Rows of image ids, all of which it has."""
        return np.searchsorted(self._ids, ids)

    def reread(self) -> None:
        """Find out what the cache has by now."""
        there = self._cached and read_manifest(self.directory) is not None
        self._cache = EmbeddingStore(self.directory) if there else None
        self._cache_rows = self._cache.rows(self._ids) if self._cache else np.full(len(self._ids), -1, np.int64)

    def holds(self, rows: Sequence[int]) -> bool:
        """Whether the cache had the records of all these rows when it was last looked at."""
        return bool((self._cache_rows[list(rows)] >= 0).all())

    def read_into(self, row: int, record: torch.Tensor) -> None:
        """Read a record that it holds; errors as for a store's."""
        assert self._cache is not None
        self._cache.read_into(int(self._cache_rows[row]), record)

    def read_seed(self, row: int) -> int:
        """The augmentation seed of any image, as its record has it or will have it."""
        return augmentation_seed(self._seed, os.fsdecode(self._ids[row]))


class OnlineTeacher:
    """Gives a batch's embeddings: from its records where they are whole, else by computing them, once."""

    def __init__(self, teacher: Teacher, store: OnlineStore, process: Process, cached: bool) -> None:
        """Set up; with `cached`, what is computed is written to the process's shard of the store."""
        self._teacher, self._store, self._process = teacher, store, process
        self._shard = Shard(store.directory, process.rank) if cached else None
        self._writer: BackgroundWriter | None = None
        self._written: set[str] = set()

    def __call__(self, batch: DistillBatch, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) normalised float32 to (B, D, E, E) float32.

        What goes to the cache is returned as it will be read from there, so that the first epoch's targets are those of
        the others.

        Raises:
            UserError: an embedding that is to be stored is not finite in float16; or it cannot be written.
        """
        store = self._store
        if batch.records.shape[1]:
            return store.decode(batch.records)[1]
        # Copied out of inference mode: the loss keeps it for the backward pass.
        embeddings = self._teacher(pixels).clone()
        if self._shard is None:
            return embeddings
        payloads = store.codec.encode(embeddings)
        self._write(batch, embeddings, payloads)
        return store.codec.decode(payloads)

    def _write(self, batch: DistillBatch, embeddings: torch.Tensor, payloads: torch.Tensor) -> None:
        assert self._shard is not None
        self._writer = self._writer or BackgroundWriter(self._shard, self._store.manifest.record_size)
        seeds = np.array([self._store.read_seed(row) for row in batch.rows], np.int32)
        records = pack_records(seeds, payloads.cpu().numpy())
        columns = zip(batch.image_ids, batch.rows, records, storable(embeddings).tolist(), strict=True)
        for image_id, row, record, is_finite in columns:
            if image_id in self._written or self._store.holds([row]):
                continue
            if not is_finite:
                raise not_storable(image_id)
            self._writer.append(image_id, record)
            self._written.add(image_id)

    def commit(self) -> None:
        """Make what was written to the cache readable, on all processes."""
        if self._shard is None:
            return
        self.close()
        barrier()  # nobody reads before all have written
        self._store.reread()
        self._written.clear()
        barrier()  # nobody writes before all have read

    def close(self) -> None:
        """Write everything to the disk."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.__exit__(None, None, None)


def open_online(config: TrainConfig) -> OnlineStore:
    """What stands for the store where the teacher is in the loop; nothing is written.

    Raises:
        UserError: the teacher or the dataset is missing, or does not fit.
    """
    export = _as_export(config)
    return OnlineStore(plan_export(export), export, config.DISTILL.ONLINE_CACHE is not None)


@contextmanager
def online_teacher(config: TrainConfig, store: EmbeddingStore, process: Process) -> Iterator[OnlineTeacher | None]:
    """The teacher of a training that computes its targets, ready to work; None for one that reads a store.

    Raises:
        UserError: the cache was begun with other settings.
    """
    if not isinstance(store, OnlineStore):
        yield None
        return
    export, plan, cached = _as_export(config), store.plan, config.DISTILL.ONLINE_CACHE is not None
    if cached:
        prepare_store(export, plan, process)
        store.reread()
        check_space(plan, missing_images(plan))
        barrier()  # nobody writes before all have read what is there
    online = OnlineTeacher(load_teacher(export, plan.preprocessing, process), store, process, cached)
    try:
        yield online
    finally:
        online.close()


def _as_export(config: TrainConfig) -> ExportConfig:
    """The export whose embeddings this training computes; the cache is its OUTPUT."""
    return ExportConfig(
        DATA=ExportDataConfig(**config.DATA.model_dump(), AUGMENT=config.DISTILL.AUGMENT),
        MODEL=config.TEACHER,
        DISTILL=StoreConfig(EMBED_DIM=config.DISTILL.EMBED_DIM, EMBED_SIZE=config.DISTILL.EMBED_SIZE),
        OUTPUT=config.DISTILL.ONLINE_CACHE or config.output_dir,
        SEED=config.SEED,
        AMP_ENABLE=config.AMP_ENABLE,
        DEVICE=config.DEVICE,
    )
