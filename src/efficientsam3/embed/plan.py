"""What an export will do, found out and checked before work begins."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from efficientsam3.config.schema import ExportConfig
from efficientsam3.data.listing import ImageListing, check_disjoint, list_images
from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.embed.preprocessing import resolve_preprocessing
from efficientsam3.models.teacher import teacher_preprocessing
from efficientsam3.runtime.errors import UserError
from efficientsam3.store.codecs import SEED_BYTES, payload_size
from efficientsam3.store.manifest import read_manifest
from efficientsam3.store.reader import EmbeddingStore

EMBEDDINGS_DIR = "embeddings"
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class ExportPlan:
    """What an export will do, found out without loading the teacher or writing anything."""

    splits: tuple[ImageListing, ...]
    preprocessing: Preprocessing
    store_dir: Path
    record_size: int  # bytes

    @property
    def count(self) -> int:
        """Number of images."""
        return sum(len(split) for split in self.splits)


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
    record_size = SEED_BYTES + payload_size(config.DISTILL.CODEC, *shape)
    return ExportPlan(splits, resolve_preprocessing(config.DATA, own), config.output_dir / EMBEDDINGS_DIR, record_size)


def missing_images(plan: ExportPlan) -> list[Indices]:
    """The images of each split that the store has no committed record of: all where there is no store yet."""
    if read_manifest(plan.store_dir) is None:
        return [np.arange(len(split)) for split in plan.splits]
    store = EmbeddingStore(plan.store_dir)
    return [np.flatnonzero(store.rows(split.ids) < 0) for split in plan.splits]


def check_space(plan: ExportPlan, missing: list[Indices]) -> None:
    """Refuse an export that the disk cannot hold.

    Raises:
        UserError: the `missing` images take more bytes than are free.
    """
    count = sum(map(len, missing))
    needed, free = count * plan.record_size, free_space(plan.store_dir)
    if needed > free:
        raise UserError(
            f"The {count} images to export take {needed / 1e9:.3f} GB and {plan.store_dir} has {free / 1e9:.3f} GB "
            "free: make room, or choose another OUTPUT or a smaller DISTILL.CODEC (`efficientsam3 plan` lists them)."
        )


def free_space(directory: Path) -> int:
    """Bytes free where `directory` is, or will be made."""
    while not directory.exists():
        directory = directory.absolute().parent
    return shutil.disk_usage(directory).free
