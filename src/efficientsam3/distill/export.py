"""The export: run the teacher over the dataset once and store what it says. Resumable, with any number of processes."""

import logging
import time
from dataclasses import dataclass

import torch

from efficientsam3.config.schema import ExportConfig
from efficientsam3.data.dataset import ImageBatch
from efficientsam3.distill.embed import check_storable, embed_batch, image_batches, load_teacher
from efficientsam3.distill.export_plan import ExportPlan, check_space, missing_images, plan_export
from efficientsam3.distill.store_setup import prepare_store
from efficientsam3.embeddings.codecs import Codec, pack_records
from efficientsam3.embeddings.shards import Shard
from efficientsam3.embeddings.writer import BackgroundWriter
from efficientsam3.runtime.distributed import Process, all_gather, barrier
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import write_text
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.runtime.progress import progress_bar

logger = logging.getLogger(LOGGER_NAME)
BROKEN_NAME = "broken_images.txt"


@dataclass(frozen=True)
class ExportSummary:
    """What an export did, over all processes."""

    exported: int
    present: int  # images that were in the store already
    broken: tuple[str, ...]  # a sentence for each picture that could not be read
    seconds: float


def export_embeddings(config: ExportConfig, process: Process) -> ExportSummary:
    """Compute and store the embeddings that are missing.

    Raises:
        UserError: see `plan_export`; or the store was begun with other settings, the disk is full or too small, or the
            teacher gives a value that is not finite (with the image's name).
    """
    plan = plan_export(config)
    _warn_empty(plan)
    manifest = prepare_store(config, plan, process)
    missing = missing_images(plan)
    check_space(plan, missing)
    mine = [indices[process.rank :: process.world_size] for indices in missing]
    barrier()  # nobody writes before all have read what is there
    total, start = sum(map(len, missing)), time.monotonic()
    logger.info("%d images, %d in the store already, %d to export", plan.count, plan.count - total, total)
    teacher = load_teacher(config, plan.preprocessing, process)
    codec, broken, exported = manifest.build_codec(plan.store_dir), list[str](), 0
    with (
        BackgroundWriter(Shard(plan.store_dir, process.rank), manifest.record_size) as writer,
        progress_bar("export", sum(map(len, mine)), process.is_main) as advance,
    ):
        for number, batch in enumerate(image_batches(config, plan, mine, process)):
            if process.is_orphan():
                raise UserError("The launcher (torchrun) is gone, so this worker stops; run the same command again.")
            _write(batch, embed_batch(teacher, batch, plan.preprocessing, process.device), codec, writer)
            exported += len(batch.image_ids)
            broken += batch.broken
            for sentence in batch.broken:
                logger.warning("skipped: %s", sentence)
            advance(len(batch.image_ids) + len(batch.broken))
            if number % config.PRINT_FREQ == 0:
                rate = exported * process.world_size / (time.monotonic() - start)
                eta = (total - exported * process.world_size) / max(rate, 1e-9)
                logger.info(
                    "%d of %d exported here, %.2f images/s in all, ETA %.0f s", exported, sum(map(len, mine)), rate, eta
                )
    return _summarise(config, process, plan, exported, broken, total, time.monotonic() - start)


def _write(batch: ImageBatch, embeddings: torch.Tensor, codec: Codec, writer: BackgroundWriter) -> None:
    if not batch.image_ids:
        return
    check_storable(batch, embeddings)
    records = pack_records(batch.seeds.numpy(), codec.encode(embeddings).cpu().numpy())
    for image_id, record in zip(batch.image_ids, records, strict=True):
        writer.append(image_id, record)


def _summarise(
    config: ExportConfig,
    process: Process,
    plan: ExportPlan,
    exported: int,
    broken: list[str],
    total: int,
    seconds: float,
) -> ExportSummary:
    shares = all_gather((exported, broken))
    sentences = tuple(sentence for _, of_rank in shares for sentence in of_rank)
    summary = ExportSummary(sum(count for count, _ in shares), plan.count - total, sentences, seconds)
    if process.is_main:
        logger.info("exported %d images in %.1f s to %s", summary.exported, seconds, plan.store_dir)
        if sentences:
            write_text(config.output_dir / BROKEN_NAME, "".join(f"{sentence}\n" for sentence in sentences))
            logger.warning(
                "%d pictures are broken and were skipped, see %s", len(sentences), config.output_dir / BROKEN_NAME
            )
    return summary


def _warn_empty(plan: ExportPlan) -> None:
    for name, split in zip(("train", "val"), plan.splits, strict=True):
        if len(split) == 0:
            logger.warning("the %s split has no images", name)
