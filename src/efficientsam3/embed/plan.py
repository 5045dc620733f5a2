"""What an embedding run will do, found out and checked before work begins. Nothing below takes a configuration."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from efficientsam3.config.schema import AugmentConfig, DataConfig, EmbeddingConfig, ExportConfig, TeacherConfig
from efficientsam3.data.augment import Augmentation
from efficientsam3.data.layouts import list_images
from efficientsam3.data.listing import ImageListing, check_disjoint
from efficientsam3.data.loader import check_shared_memory, count_readers
from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.models.teacher import KNOWN_TEACHERS, TeacherSpec, check_compiles, inspect_teacher
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.store.codecs import payload_size
from efficientsam3.store.manifest import StoreManifest, read_store_manifest
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.store.records import SEED_BYTES
from efficientsam3.store.shards import find_shards

logger = logging.getLogger(LOGGER_NAME)
EMBEDDINGS_DIR = "embeddings"
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class EmbedPlan:
    """Everything that an embedding run works with, found out without loading the teacher or writing anything."""

    splits: tuple[ImageListing, ...]  # train, val
    teacher: TeacherSpec
    manifest: StoreManifest  # of the store, without the teacher's hash and the projection
    store_dir: Path
    batch_size: int  # images per process
    num_workers: int
    amp: bool
    print_freq: int  # batches
    compile_teacher: bool = False

    @property
    def count(self) -> int:
        """Number of images."""
        return sum(map(len, self.splits))


def plan_embedding(config: ExportConfig) -> EmbedPlan:
    """Plan what `efficientsam3 embed` does; see `build_plan`."""
    return build_plan(
        config.DATA,
        config.MODEL,
        config.DISTILL,
        augmentation=config.DATA.AUGMENT,
        store_dir=config.output_dir / EMBEDDINGS_DIR,
        codec=config.DISTILL.CODEC,
        seed=config.SEED,
        amp=config.AMP_ENABLE,
        print_freq=config.PRINT_FREQ,
    )


def build_plan(
    data: DataConfig,
    teacher: TeacherConfig,
    shape: EmbeddingConfig,
    *,
    augmentation: AugmentConfig,
    store_dir: Path,
    codec: str = "float16",
    seed: int,
    amp: bool,
    print_freq: int,
) -> EmbedPlan:
    """Check everything that can be checked before work begins.

    Raises:
        UserError: the dataset is missing or empty, ids repeat, or teacher and configuration do not fit.
    """
    splits = tuple(
        list_images(data.DATA_PATH, split, data.DATASET, limit=data.NUM_SAMPLES) for split in ("train", "val")
    )
    if not any(map(len, splits)):
        raise UserError(
            f"DATA.DATA_PATH {data.DATA_PATH} has no images in train or val: give the folder that "
            "`python data/reorg_sa1b.py` made."
        )
    check_disjoint(*splits)
    spec = inspect_teacher(
        teacher.RESUME,
        given_size(data.IMG_SIZE),
        given_size(shape.EMBED_DIM),
        given_size(shape.EMBED_SIZE),
        teacher.NAME,
    )
    if teacher.COMPILE:
        check_compiles(teacher.RESUME)
    payload_size(codec, spec.embed_dim, spec.embed_size)  # refuses a codec that does not fit the shape
    manifest = StoreManifest(
        codec=codec,
        embed_dim=spec.embed_dim,
        embed_size=spec.embed_size,
        preprocessing=resolve_preprocessing(data, spec.image_size, spec.preprocessing),
        augmentation=Augmentation(hflip=augmentation.HFLIP, color_jitter=augmentation.COLOR_JITTER),
        seed=seed,
    )
    num_workers = count_readers(data.NUM_WORKERS)
    return EmbedPlan(splits, spec, manifest, store_dir, data.BATCH_SIZE, num_workers, amp, print_freq, teacher.COMPILE)


def given_size(value: Literal["teacher"] | int) -> int | None:
    """The number that a size is configured to be; None where it is left to the teacher."""
    return None if value == "teacher" else value


def resolve_preprocessing(data: DataConfig, image_size: int, own: Preprocessing | None) -> Preprocessing:
    """Fill in `teacher` where RESIZE, MEAN or STD says so.

    Args:
        data: the configuration's section.
        image_size: side of the input in pixels.
        own: what the teacher was trained on, or None where that is unknown.

    Raises:
        UserError: a key says `teacher`, and what the teacher was trained on is unknown.
    """
    given = {"resize": data.RESIZE, "mean": data.MEAN, "std": data.STD}
    unknown = [f"DATA.{key.upper()}" for key, value in given.items() if value == "teacher"]
    if own is None and unknown:
        raise UserError(
            f"{', '.join(unknown)} cannot be 'teacher' here, since this teacher does not say what it was trained on: "
            "give RESIZE (square or pad), MEAN and STD."
        )
    values = {key: getattr(own, key) if value == "teacher" else value for key, value in given.items()}
    return Preprocessing(image_size=image_size, **values)


def published_manifest(directory: Path, data: DataConfig, shape: EmbeddingConfig) -> StoreManifest | None:
    """Describe a store in the published format, which has no manifest; None for any other directory.

    Sizes that the configuration leaves to the teacher are those of the known teacher whose records have the size of
    this store's.

    Raises:
        UserError: a size is left to the teacher, and no known teacher fits.
    """
    if (
        not directory.is_dir()
        or read_store_manifest(directory) is not None
        or not any(directory.glob("rank*-keys.txt"))
    ):
        return None
    dim, size, image_size = map(given_size, (shape.EMBED_DIM, shape.EMBED_SIZE, data.IMG_SIZE))
    found = (dim, size) if dim and size else _published_shape(directory, dim, size)
    known = KNOWN_TEACHERS.get(found)
    image_size = image_size or (known.image_size if known else None)
    if image_size is None:
        raise UserError(f"{directory} has no manifest that says at which size its images were: set DATA.IMG_SIZE.")
    preprocessing = resolve_preprocessing(data, image_size, known)
    logger.warning("%s has no manifest: taken as the published format, %s, %r", directory, found, preprocessing)
    return StoreManifest(embed_dim=found[0], embed_size=found[1], preprocessing=preprocessing)


def _published_shape(directory: Path, embed_dim: int | None, embed_size: int | None) -> tuple[int, int]:
    records = {
        shard.values_path.stat().st_size / len(keys)
        for shard in find_shards(directory)
        if (keys := shard.read_keys()) and shard.values_path.exists()
    }
    for dim, size in KNOWN_TEACHERS:
        fits = embed_dim in (None, dim) and embed_size in (None, size)
        if fits and SEED_BYTES + payload_size("float16", dim, size) in records:
            return dim, size
    raise UserError(
        f"{directory} has no manifest, and its records are not those of a known teacher: set DISTILL.EMBED_DIM, "
        "DISTILL.EMBED_SIZE and DATA.IMG_SIZE to its teacher's."
    )


def missing_images(plan: EmbedPlan) -> list[Indices]:
    """The images of each split that the store has no committed record of: all where there is no store yet."""
    if read_store_manifest(plan.store_dir) is None:
        return [np.arange(len(split)) for split in plan.splits]
    store = EmbeddingStore(plan.store_dir)
    return [np.flatnonzero(store.rows(split.ids) < 0) for split in plan.splits]


def pick(splits: list[Indices], places: Indices) -> list[Indices]:
    """Those images of each split that stand at `places` in the splits one after the other."""
    starts = np.cumsum([0, *map(len, splits[:-1])])
    return [
        split[places[(places >= start) & (places < start + len(split))] - start]
        for split, start in zip(splits, starts, strict=True)
    ]


def check_space(plan: EmbedPlan, missing: list[Indices]) -> None:
    """Refuse a run that the disk, or the memory in which images are handed over, cannot hold.

    Raises:
        UserError: the `missing` images take more bytes than are free; or see `check_shared_memory`.
    """
    count = sum(map(len, missing))
    needed, free = count * plan.manifest.record_size, free_space(plan.store_dir)
    if needed > free:
        raise UserError(
            f"The {count} images to embed take {needed / 1e9:.3f} GB and {plan.store_dir} has {free / 1e9:.3f} GB "
            "free: make room, or choose another OUTPUT or a smaller DISTILL.CODEC (`efficientsam3 plan` lists them)."
        )
    check_shared_memory(count, plan.manifest.preprocessing.image_size, plan.batch_size, plan.num_workers)


def free_space(directory: Path) -> int:
    """Bytes free where `directory` is, or will be made."""
    return shutil.disk_usage(standing_folder(directory)).free


def standing_folder(directory: Path) -> Path:
    """`directory`, or what there is of its parents."""
    while not directory.exists():
        directory = directory.absolute().parent
    return directory
