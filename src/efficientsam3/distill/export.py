"""The export: run the teacher over the dataset once and store what it says. Resumable, with any number of processes."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from efficientsam3.config.schema import ExportConfig
from efficientsam3.data.augment import Augmentation
from efficientsam3.data.dataset import ImageBatch, ImageDataset, build_loader, collate_images
from efficientsam3.data.listing import ImageListing, check_disjoint, list_images
from efficientsam3.data.preprocess import Preprocessing, normalise
from efficientsam3.distill.preprocessing import resolve_preprocessing
from efficientsam3.embeddings.codecs import Codec, pack_records
from efficientsam3.embeddings.manifest import Manifest, TeacherIdentity, write_manifest
from efficientsam3.embeddings.reader import EmbeddingStore
from efficientsam3.embeddings.shards import Shard
from efficientsam3.embeddings.writer import BackgroundWriter
from efficientsam3.models.teacher import Teacher, build_teacher, is_onnx, teacher_hash, teacher_preprocessing
from efficientsam3.runtime.device import autocast_dtype
from efficientsam3.runtime.distributed import Process, all_gather, barrier, broadcast
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import write_text
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.runtime.progress import progress_bar

logger = logging.getLogger(LOGGER_NAME)
EMBEDDINGS_DIR = "embeddings"
BROKEN_NAME = "broken_images.txt"
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class ExportPlan:
    """What an export will do, found out without loading the teacher or writing anything."""

    splits: tuple[ImageListing, ...]
    preprocessing: Preprocessing
    store_dir: Path

    @property
    def count(self) -> int:
        """Number of images."""
        return sum(len(split) for split in self.splits)


@dataclass(frozen=True)
class ExportSummary:
    """What an export did, over all processes."""

    exported: int
    present: int  # images that were in the store already
    broken: tuple[str, ...]  # a sentence for each picture that could not be read
    seconds: float


def plan_export(config: ExportConfig) -> ExportPlan:
    """Check everything that can be checked before work begins.

    Raises:
        UserError: the dataset is missing or empty, ids repeat, or teacher and configuration do not fit.
    """
    splits = tuple(
        list_images(config.DATA.DATA_PATH, split, config.DATA.DATASET, limit=config.DATA.NUM_SAMPLES)
        for split in ("train", "val")
    )
    if not any(map(len, splits)):
        raise UserError(
            f"DATA.DATA_PATH {config.DATA.DATA_PATH} has no images in train or val: give the folder that "
            "`python data/reorg_sa1b.py` made."
        )
    check_disjoint(*splits)
    shape = (config.DISTILL.EMBED_DIM, config.DISTILL.EMBED_SIZE)
    own = teacher_preprocessing(config.MODEL.RESUME, config.DATA.IMG_SIZE, *shape)
    return ExportPlan(splits, resolve_preprocessing(config.DATA, own), config.output_dir / EMBEDDINGS_DIR)


def export_embeddings(config: ExportConfig, process: Process) -> ExportSummary:
    """Compute and store the embeddings that are missing.

    Raises:
        UserError: see `plan_export`; or the store was begun with other settings, the disk is full, or the teacher gives
            a value that is not finite (with the image's name).
    """
    plan = plan_export(config)
    _warn_empty(plan)
    manifest = prepare_store(config, plan, process)
    missing = _missing(plan, EmbeddingStore(plan.store_dir))
    mine = [indices[process.rank :: process.world_size] for indices in missing]
    barrier()  # nobody writes before all have read what is there
    total, start = sum(map(len, missing)), time.monotonic()
    logger.info("%d images, %d in the store already, %d to export", plan.count, plan.count - total, total)
    teacher = load_teacher(config, plan.preprocessing, process)
    codec, broken, exported = manifest.build_codec(), list[str](), 0
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


def prepare_store(config: ExportConfig, plan: ExportPlan, process: Process) -> Manifest:
    """Write the manifest, or compare it with the one that is there, on rank 0; a refusal reaches every rank."""
    problem: str | None = None
    manifest: Manifest | None = None
    if process.is_main:
        dtype = _autocast(config, process)
        manifest = Manifest(
            embed_dim=config.DISTILL.EMBED_DIM,
            embed_size=config.DISTILL.EMBED_SIZE,
            preprocessing=plan.preprocessing,
            augmentation=Augmentation(hflip=config.DATA.AUGMENT.HFLIP, color_jitter=config.DATA.AUGMENT.COLOR_JITTER),
            seed=config.SEED,
            teacher=TeacherIdentity(
                name=config.MODEL.NAME,
                sha256=teacher_hash(config.MODEL.RESUME),
                compute_dtype=str(dtype or torch.float32).removeprefix("torch."),
            ),
        )
        try:
            write_manifest(plan.store_dir, manifest)
        except UserError as error:
            problem = str(error)
    problem, manifest = broadcast((problem, manifest))
    if problem is not None:
        raise UserError(problem)
    assert manifest is not None
    return manifest


def _autocast(config: ExportConfig, process: Process) -> torch.dtype | None:
    usable = config.AMP_ENABLE and not is_onnx(config.MODEL.RESUME)
    return autocast_dtype(process.device) if usable else None


def load_teacher(config: ExportConfig, preprocessing: Preprocessing, process: Process) -> Teacher:
    """The teacher of this run, on this process's device."""
    return build_teacher(
        config.MODEL.RESUME,
        preprocessing,
        config.DISTILL.EMBED_DIM,
        config.DISTILL.EMBED_SIZE,
        process.device,
        _autocast(config, process),
    )


def _missing(plan: ExportPlan, store: EmbeddingStore) -> list[Indices]:
    return [np.flatnonzero(store.rows(split.ids) < 0) for split in plan.splits]


def image_batches(
    config: ExportConfig, plan: ExportPlan, indices: list[Indices], process: Process
) -> Iterator[ImageBatch]:
    """Read the images that `indices` names in each split of the plan, as this run preprocesses them."""
    augmentation = Augmentation(hflip=config.DATA.AUGMENT.HFLIP, color_jitter=config.DATA.AUGMENT.COLOR_JITTER)
    for split, of_split in zip(plan.splits, indices, strict=True):
        dataset = ImageDataset(split, of_split, plan.preprocessing, augmentation, config.SEED)
        yield from build_loader(
            dataset, config.DATA.BATCH_SIZE, config.DATA.NUM_WORKERS, collate_images, process.device
        )


def embed_batch(
    teacher: Teacher, batch: ImageBatch, preprocessing: Preprocessing, device: torch.device
) -> torch.Tensor:
    """(B, D, E, E) float32 on the teacher's device; an empty batch gives an empty tensor."""
    if not batch.image_ids:
        return torch.empty(0, 1, 1, 1, device=device)
    pixels = batch.pixels.to(device, non_blocking=True)
    return teacher(normalise(pixels, batch.content_sizes.to(device), preprocessing))


def _write(batch: ImageBatch, embeddings: torch.Tensor, codec: Codec, writer: BackgroundWriter) -> None:
    if not batch.image_ids:
        return
    # What float16 cannot hold becomes infinite there, so the check is on what will be stored.
    finite = embeddings.to(torch.float16).isfinite().flatten(1).all(dim=1).tolist()
    for image_id, is_finite in zip(batch.image_ids, finite, strict=True):
        if not is_finite:
            raise UserError(
                f"The teacher's embedding of image {image_id!r} is not finite in float16: check the teacher's "
                "checkpoint and that picture, or use --disable-amp."
            )
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
