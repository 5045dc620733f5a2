"""What a training will do, found out and checked before work begins."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from efficientsam3.checkpoints.standardisation import Standardisation
from efficientsam3.config.schema import TrainConfig
from efficientsam3.data.listing import check_disjoint, list_images
from efficientsam3.data.preprocess import SAM3_PREPROCESSING, SAM_PREPROCESSING, Preprocessing
from efficientsam3.embed.preprocessing import resolve_preprocessing
from efficientsam3.models.student import StudentArchitecture, check_student_grid
from efficientsam3.runtime.device import select_device
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import require_file
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.store.manifest import Manifest, read_manifest
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.store.statistics import ChannelStatistics, gathered_statistics, store_statistics
from efficientsam3.train.dataset import DistillDataset
from efficientsam3.train.targets import open_online

logger = logging.getLogger(LOGGER_NAME)
# Teachers that a store in the published format can come from, by its shape.
_PUBLISHED = {(1024, 72): SAM3_PREPROCESSING, (256, 64): SAM_PREPROCESSING}


@dataclass(frozen=True)
class TrainPlan:
    """Datasets, store and student of a training."""

    train: DistillDataset
    val: DistillDataset
    store: EmbeddingStore
    architecture: StudentArchitecture
    without_embedding: int  # images that the store has no embedding for
    statistics: ChannelStatistics | None  # of the store's features; None where not all were gathered
    standardisation: Standardisation | None  # what the targets are standardised by


def plan_training(config: TrainConfig) -> TrainPlan:
    """Check everything that can be checked before work begins.

    Raises:
        UserError: the dataset or the store is missing, empty, or does not fit the configuration; the backbone is
            unknown or does not give the embedding's shape; a named file is missing; a flag has no effect here; targets
            are to be standardised, and the store lacks their statistics.
    """
    _check_options(config)
    store = open_store(config)
    _check_store(config, store.manifest)
    listings = [
        list_images(config.DATA.DATA_PATH, split, config.DATA.DATASET, limit=config.DATA.NUM_SAMPLES)
        for split in ("train", "val")
    ]
    check_disjoint(*listings)
    train, val = (DistillDataset(listing, store) for listing in listings)
    if len(train) == 0:
        raise UserError(
            f"None of the {len(listings[0])} training images in {config.DATA.DATA_PATH} has an embedding in "
            f"{store.directory}: export that dataset first, or set DISTILL.TEACHER_EMBED_PATH to its store."
        )
    architecture = StudentArchitecture(
        config.MODEL.BACKBONE,
        config.DISTILL.EMBED_DIM,
        config.DISTILL.EMBED_SIZE,
        config.DATA.IMG_SIZE,
        config.MODEL.HEAD,
    )
    check_student_grid(architecture)
    lacking = sum(map(len, listings)) - len(train) - len(val)
    statistics, standardisation = None, None
    if config.DISTILL.NORMALIZE == "channel":
        statistics = store_statistics(store.directory)
        standardisation = Standardisation.of(statistics.mean, statistics.variance)
    elif not config.DISTILL.ONLINE:
        statistics = gathered_statistics(store.directory)
    return TrainPlan(train, val, store, architecture, lacking, statistics, standardisation)


def open_store(config: TrainConfig) -> EmbeddingStore:
    """The store that a training learns from, or what stands for it where the teacher is in the loop.

    One in the published format is described by the configuration.

    Raises:
        UserError: there is none; or the teacher in the loop is missing, or does not fit.
    """
    if config.DISTILL.ONLINE:
        return open_online(config)
    return EmbeddingStore(config.DISTILL.TEACHER_EMBED_PATH, _published_manifest(config))


def _check_options(config: TrainConfig) -> None:
    if config.TRAIN.USE_SYNC_BN and select_device(config.DEVICE).type != "cuda":
        raise UserError("--use-sync-bn needs GPUs: PyTorch has no synchronised BatchNorm on CPU or MPS, leave it out.")
    if config.MODEL.RESUME is not None:
        require_file(config.MODEL.RESUME, "MODEL.RESUME", "give a ckpt_epoch_N.pth, or leave it out")
    if isinstance(config.MODEL.PRETRAINED, Path):
        require_file(config.MODEL.PRETRAINED, "MODEL.PRETRAINED", "give a checkpoint file, true or false")


def _published_manifest(config: TrainConfig) -> Manifest | None:
    """Describe a store without a manifest by the configuration; None where it has one."""
    directory = config.DISTILL.TEACHER_EMBED_PATH
    if not directory.is_dir() or read_manifest(directory) is not None or not any(directory.glob("rank*-keys.txt")):
        return None
    shape = (config.DISTILL.EMBED_DIM, config.DISTILL.EMBED_SIZE)
    known = _PUBLISHED.get(shape)
    preprocessing = resolve_preprocessing(config.DATA, known)
    logger.warning("%s has no manifest: taken as the published format, %s, %r", directory, shape, preprocessing)
    return Manifest(embed_dim=shape[0], embed_size=shape[1], preprocessing=preprocessing)


def _check_store(config: TrainConfig, manifest: Manifest) -> None:
    shape = (config.DISTILL.EMBED_DIM, config.DISTILL.EMBED_SIZE)
    if shape != (manifest.embed_dim, manifest.embed_size):
        raise UserError(
            f"The store {config.DISTILL.TEACHER_EMBED_PATH} holds embeddings of {manifest.embed_dim} channels and "
            f"{manifest.embed_size} cells a side, not DISTILL.EMBED_DIM {shape[0]} and EMBED_SIZE {shape[1]}: set "
            "those to what it holds, or give another store."
        )
    if manifest.preprocessing.image_size != config.DATA.IMG_SIZE:
        raise UserError(
            f"The store was exported at {manifest.preprocessing.image_size} pixels, not DATA.IMG_SIZE "
            f"{config.DATA.IMG_SIZE}: train at the store's size, or export again."
        )
    wanted = resolve_preprocessing(config.DATA, manifest.preprocessing)
    if not _same(wanted, manifest.preprocessing):
        raise UserError(
            f"The store was exported with {manifest.preprocessing!r}, and the configuration asks for {wanted!r}: leave "
            "DATA.RESIZE, MEAN and STD at 'teacher', or export again."
        )


def _same(left: Preprocessing, right: Preprocessing) -> bool:
    # Statistics typed in a YAML file have fewer digits than the constants here.
    return left.resize == right.resize and np.allclose([left.mean, left.std], [right.mean, right.std], atol=1e-6)
