"""Run the teacher over the dataset once and store its embeddings. Resumable, with any number of processes."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

from efficientsam3.data.loader import ImageBatch
from efficientsam3.embed.batches import image_batches, load_teacher
from efficientsam3.embed.pipeline import Pipeline
from efficientsam3.embed.plan import EmbedPlan, Indices, check_space, missing_images
from efficientsam3.embed.setup import prepare_store
from efficientsam3.runtime.distributed import Process, all_gather, barrier, on_main
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import write_text
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.runtime.progress import progress_bar
from efficientsam3.store.encodings import Codec
from efficientsam3.store.gather import content_sizes, continue_statistics
from efficientsam3.store.manifest import StoreManifest
from efficientsam3.store.shards import Shard, find_shards
from efficientsam3.store.statistics import ShardStatistics
from efficientsam3.store.writer import BackgroundWriter

logger = logging.getLogger(LOGGER_NAME)
BROKEN_NAME = "broken_images.txt"


@dataclass(frozen=True)
class EmbedSummary:
    """What an embedding run did, over all processes."""

    embedded: int
    present: int  # images that were in the store already
    broken: tuple[str, ...]  # a sentence for each image that could not be read
    seconds: float

    @property
    def exported(self) -> int:
        """The former name of `embedded`."""
        return self.embedded


def embed_dataset(plan: EmbedPlan, process: Process, admitted: Callable[[], None] = lambda: None) -> EmbedSummary:
    """Compute and store the embeddings that are missing.

    Args:
        plan: of the run.
        process: this process among its peers; they share the images.
        admitted: called on the main process once the store takes what the run would add.

    Raises:
        UserError: the store was begun with other settings, the disk is full or too small, or the teacher gives a value
            that is not finite (with the image's name).
    """
    _warn_empty(plan)
    manifest = prepare_store(plan, process)
    missing = missing_images(plan)
    check_space(plan, missing)
    on_main(process, admitted)
    mine = [indices[process.rank :: process.world_size] for indices in missing]
    barrier()  # no process writes before all have read what is there
    total, start = sum(map(len, missing)), time.monotonic()
    logger.info("%d images, %d in the store already, %d to embed", plan.count, plan.count - total, total)
    codec = manifest.build_codec(plan.store_dir)
    largest = min(plan.batch_size, max(1, *map(len, mine)))
    pipeline = Pipeline(load_teacher(plan, process), manifest, codec, process.device, largest)
    broken: list[str] = []
    embedded = 0
    statistics = _catch_up(plan, manifest, codec, process)
    with (
        BackgroundWriter(Shard(plan.store_dir, process.rank), manifest.record_size, statistics, queued=0) as writer,
        closing(pipeline.run(_read(plan, mine, process), writer)) as written,
        progress_bar("embed", sum(map(len, mine)), process.is_main) as advance,
    ):
        for number, batch in enumerate(written):
            embedded += len(batch.image_ids)
            broken += batch.broken
            for sentence in batch.broken:
                logger.warning("skipped: %s", sentence)
            advance(len(batch.image_ids) + len(batch.broken))
            if number % plan.print_freq == 0:
                rate = embedded * process.world_size / (time.monotonic() - start)
                eta = (total - embedded * process.world_size) / max(rate, 1e-9)
                logger.info(
                    "%d of %d embedded here, %.2f images/s in all, ETA %.0f s", embedded, sum(map(len, mine)), rate, eta
                )
    return _summarise(process, plan, embedded, broken, total, time.monotonic() - start)


def _catch_up(plan: EmbedPlan, manifest: StoreManifest, codec: Codec, process: Process) -> ShardStatistics | None:
    """Statistics of this process's shard so far; those of shards that no process writes are completed, too.

    A run that ended between a commit and its statistics leaves few records to read. A shard without any statistics,
    written by an older version, is left as it is, because reading all of it may take long: a command does that.
    """
    own = Shard(plan.store_dir, process.rank)
    others = [shard for shard in find_shards(plan.store_dir) if shard.rank % process.world_size == process.rank]
    found: ShardStatistics | None = ShardStatistics(own, manifest.embed_dim)
    sizes = content_sizes(manifest.preprocessing, plan.splits)
    for shard in others:
        statistics: ShardStatistics | None = None
        if shard.statistics_path.exists() or not shard.read_keys():
            try:
                statistics = continue_statistics(shard, manifest, codec, sizes)
            except UserError as error:
                logger.warning("the teacher's statistics are not gathered for %s: %s", shard.keys_path.name, error)
        else:
            logger.warning("%s has no statistics: make them by `efficientsam3 store statistics`", shard.keys_path.name)
        if shard == own:
            found = statistics
    return found


def _read(plan: EmbedPlan, indices: list[Indices], process: Process) -> Iterator[ImageBatch]:
    for batch in image_batches(plan, indices, process):
        if process.is_orphan():
            raise UserError("The launcher (torchrun) is gone, so this worker stops; run the same command again.")
        yield batch


def _summarise(
    process: Process,
    plan: EmbedPlan,
    embedded: int,
    broken: list[str],
    total: int,
    seconds: float,
) -> EmbedSummary:
    shares = all_gather((embedded, broken))
    sentences = tuple(sentence for _, of_rank in shares for sentence in of_rank)
    summary = EmbedSummary(sum(count for count, _ in shares), plan.count - total, sentences, seconds)
    if process.is_main:
        logger.info("embedded %d images in %.1f s to %s", summary.embedded, seconds, plan.store_dir)
        if sentences:
            path = plan.store_dir.with_name(BROKEN_NAME)
            write_text(path, "".join(f"{sentence}\n" for sentence in sentences))
            logger.warning("%d images are broken and were skipped, see %s", len(sentences), path)
    return summary


def _warn_empty(plan: EmbedPlan) -> None:
    for name, split in zip(("train", "val"), plan.splits, strict=True):
        if len(split) == 0:
            logger.warning("the %s split has no images", name)
