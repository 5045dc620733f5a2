"""What a training will do, found out and checked before work begins. Nothing below takes a configuration."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from importlib.util import find_spec
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from efficientsam3.checkpoints.necks import NeckName, digest_neck
from efficientsam3.checkpoints.standardisation import Standardisation, check_phi_s
from efficientsam3.config.schema import Section, TrainConfig
from efficientsam3.data.layouts import DATASETS, list_images
from efficientsam3.data.listing import ImageListing, check_disjoint
from efficientsam3.data.loader import Collate, ImageDataset, check_shared_memory, collate_never_empty, count_readers
from efficientsam3.data.objects import ObjectReader
from efficientsam3.data.phrases import read_phrases
from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.data.split import SPLITS
from efficientsam3.embed.plan import (
    EMBEDDINGS_DIR,
    EmbedPlan,
    build_plan,
    given_size,
    published_manifest,
    resolve_preprocessing,
)
from efficientsam3.models.student import StudentArchitecture, check_half_size, check_student_grid
from efficientsam3.runtime.device import select_device
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import require_file
from efficientsam3.store.manifest import StoreManifest
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.store.statistics import ChannelStatistics
from efficientsam3.train.necks import NeckPlan
from efficientsam3.train.objective import FeatureObjective
from efficientsam3.train.targets import ComputedTargets, StoredTargets, Targets

if TYPE_CHECKING:
    from efficientsam3.sam3.detector import Detector
    from efficientsam3.sam3.predictor import Predictor
    from efficientsam3.train.detector import DetectorSettings
    from efficientsam3.train.masks import MaskSettings


Rotate = Callable[[torch.Tensor, torch.Tensor], Standardisation]  # from mean (D,) and covariance (D, D), float64
_ROTATIONS: dict[str, Rotate] = {"phi-s": Standardisation.phi_s, "whiten": Standardisation.white}


@dataclass(frozen=True)
class Optimisation:
    """How weights are optimised and saved; the keys of TRAIN, whose meaning `TrainSettings` describes."""

    epochs: int
    warmup_epochs: float
    base_lr: float
    min_lr: float
    lr_scaling: str
    layer_decay: float
    weight_decay: float
    clip_grad: float
    accumulation_steps: int
    small_epochs: int
    use_checkpoint: bool
    use_sync_bn: bool
    ema: float
    compile: bool
    save_steps: int
    keep_steps: int
    keep_epochs: int
    auto_resume: bool


@dataclass(frozen=True)
class ProbePlan:
    """What the mask probe measures after each epoch."""

    decoder: Path
    data_path: Path
    images: int
    objects: int


@dataclass(frozen=True)
class MasksPlan:
    """The decoder in the loop."""

    predictor: "Predictor"  # on the CPU
    settings: "MaskSettings"


@dataclass(frozen=True)
class DetectorPlan:
    """SAM3's detector in the loop."""

    detector: "Detector"  # on the CPU
    phrases: tuple[str, ...]  # what it is asked by text
    settings: "DetectorSettings"


@dataclass(frozen=True)
class TrainPlan:
    """Everything that a training works with."""

    items: ClassVar[str] = "images"  # what is trained on, in words
    embedded_by: ClassVar[str] = "efficientsam3 embed"
    train: ImageDataset
    val: ImageDataset
    targets: Targets
    architecture: StudentArchitecture
    without_embedding: int  # images that the store has no embedding for
    standardise: bool  # whether the student learns standardised targets
    rotate: Rotate | None  # how channels are rotated before that, by their covariance; None where they are not
    statistics: ChannelStatistics | None  # of the teacher's embeddings; None where they are not known yet
    term_weights: dict[str, float]  # of the objective, see FeatureObjective
    learns_padding: bool  # likewise
    masks: MasksPlan | None  # the decoder in the loop; None without one
    detector: DetectorPlan | None  # SAM3's detector in the loop; None without one
    necks: dict[NeckName, NeckPlan]  # those that are trained with the student
    optimisation: Optimisation
    batch_size: int  # images per process
    num_workers: int
    read_window: int
    pretrained: bool | Path
    resume: Path | None
    probe: ProbePlan | None
    output_dir: Path
    save_freq: int  # epochs
    print_freq: int  # batches
    seed: int
    amp: bool
    recorded: dict[str, Any]  # the configuration, as checkpoints record it

    def images_per_step(self, world_size: int) -> int:
        """Images an optimiser step, over all processes."""
        return self.batch_size * self.optimisation.accumulation_steps * world_size

    @property
    def collate(self) -> Collate:
        """What makes batches of the datasets' items; they are never empty."""
        return partial(collate_never_empty, image_size=self.architecture.image_size)


def plan_training(config: TrainConfig, cache: bool = True) -> TrainPlan:
    """Check everything that can be checked before work begins.

    Args:
        config: of the training.
        cache: whether ONLINE_CACHE is read and extended; a measurement leaves it alone.

    Raises:
        UserError: the dataset or the store is missing, empty, or does not fit the configuration; the backbone is
            unknown or does not give the embedding's shape; a named file is missing; a flag has no effect here; targets
            are to be standardised, and the store lacks their statistics.
    """
    _check_options(config)
    targets = _open_targets(config, cache)
    _check_targets(config, targets.manifest)
    listings = [
        list_images(config.DATA.DATA_PATH, split, config.DATA.DATASET, limit=config.DATA.NUM_SAMPLES)
        for split in SPLITS
    ]
    check_disjoint(*listings)
    readers = _object_readers(config, listings)
    train, val = (paired_images(listing, targets, reader) for listing, reader in zip(listings, readers, strict=True))
    if len(train) == 0 and len(listings[0]) == 0:
        raise UserError(
            f"{config.DATA.DATA_PATH} has no training images: give a dataset that has some with DATA.DATA_PATH."
        )
    if len(train) == 0:
        raise UserError(
            f"None of the {len(listings[0])} training images in {config.DATA.DATA_PATH} has an embedding in "
            f"{config.DISTILL.TEACHER_EMBED_PATH}: embed that dataset first, or set DISTILL.TEACHER_EMBED_PATH to its "
            "store."
        )
    manifest = targets.manifest
    architecture = StudentArchitecture(
        config.MODEL.BACKBONE,
        manifest.embed_dim,
        manifest.embed_size,
        manifest.preprocessing.image_size,
        config.MODEL.HEAD,
    )
    check_student_grid(architecture)
    if config.TRAIN.SMALL_EPOCHS:
        check_half_size(architecture)
    num_workers = count_readers(config.DATA.NUM_WORKERS)
    check_shared_memory(len(train), architecture.image_size, config.DATA.BATCH_SIZE, num_workers)
    standardise = config.DISTILL.NORMALIZE != "none"
    if config.DISTILL.NORMALIZE == "phi-s":
        check_phi_s(manifest.embed_dim)
    weights = _term_weights(config)
    masks, detector = _plan_masks(config, manifest), _plan_detector(config, manifest, readers)
    return TrainPlan(
        train,
        val,
        targets,
        architecture,
        without_embedding=sum(map(len, listings)) - len(train) - len(val),
        standardise=standardise,
        rotate=_ROTATIONS.get(config.DISTILL.NORMALIZE),
        statistics=targets.known_moments(needed=standardise),
        term_weights=weights,
        learns_padding=config.DISTILL.PADDING,
        masks=masks,
        detector=detector,
        necks=_plan_necks(config, masks, detector),
        optimisation=Optimisation(**{key.lower(): value for key, value in config.TRAIN}),
        batch_size=config.DATA.BATCH_SIZE,
        num_workers=num_workers,
        read_window=config.DISTILL.READ_WINDOW,
        pretrained=config.MODEL.PRETRAINED,
        resume=config.MODEL.RESUME,
        probe=_plan_probe(config),
        output_dir=config.output_dir,
        save_freq=config.SAVE_FREQ,
        print_freq=config.PRINT_FREQ,
        seed=config.SEED,
        amp=config.AMP_ENABLE,
        recorded=_record(config, manifest, detector),
    )


def _term_weights(config: TrainConfig) -> dict[str, float]:
    """The weights of the objective's terms.

    Raises:
        UserError: a term does not exist, has a key of its own, or all weights are 0.
    """
    own = {"mse": config.DISTILL.PIXEL_WISE, "cosine": config.DISTILL.COSINE}
    for name in own.keys() & config.DISTILL.TERMS.keys():
        raise UserError(f"DISTILL.TERMS has {name!r}, whose weight is PIXEL_WISE (mse) or COSINE (cosine): set that.")
    weights = own | config.DISTILL.TERMS
    FeatureObjective(weights, alone=config.DISTILL.by_features_alone)  # names what is wrong with them
    return weights


def paired_images(listing: ImageListing, targets: Targets, objects_of: ObjectReader | None = None) -> ImageDataset:
    """The images of a listing that have targets, with their annotated objects where `objects_of` reads them."""
    rows = targets.rows(listing.ids)
    indices = np.flatnonzero(rows >= 0)
    manifest = targets.manifest
    return ImageDataset(
        listing,
        indices,
        manifest.preprocessing,
        manifest.augmentation,
        targets.seed_of,
        rows[indices],
        objects_of,
    )


def _object_readers(config: TrainConfig, listings: Sequence[ImageListing]) -> list[ObjectReader | None]:
    """What reads the annotated objects of the splits' images; None where prompts are not needed, or none annotated.

    Raises:
        UserError: the annotations cannot be read.
    """
    if config.DISTILL.by_features_alone:
        return [None] * len(listings)
    layout = DATASETS[config.DATA.DATASET]
    found = [layout.annotated(config.DATA.DATA_PATH, split) for split in SPLITS]
    return [None if one is None else ObjectReader(one, of.ids) for one, of in zip(found, listings, strict=True)]


def _plan_masks(config: TrainConfig, manifest: StoreManifest) -> "MasksPlan | None":
    """The decoder in the loop, opened.

    Raises:
        UserError: it is missing, no such decoder, or does not take the teacher's embeddings.
    """
    values = {key.lower(): value for key, value in config.DISTILL.MASKS}
    path, rate = values.pop("decoder"), values.pop("neck")
    if path is None:
        return None
    # Imported here, since transformers takes seconds.
    from efficientsam3.sam3.decoders import check_fits
    from efficientsam3.sam3.predictor import load_predictor
    from efficientsam3.train.masks import MaskSettings

    predictor = load_predictor(path, torch.device("cpu"))
    check_fits("The teacher", (manifest.embed_dim, manifest.embed_size), manifest.preprocessing, predictor)
    settings = MaskSettings(**values)
    for key, value in (("LEVELS", settings.levels), ("NECK", rate)):
        if value and predictor.neck is None:
            raise UserError(
                f"DISTILL.MASKS.{key} {value:g} needs a SAM3 as DISTILL.MASKS.DECODER: SAM's decoder {path} reads the "
                f"embedding itself and has no neck, so leave {key} out."
            )
    return MasksPlan(predictor, settings)


def _plan_necks(
    config: TrainConfig, masks: MasksPlan | None, detector: DetectorPlan | None
) -> "dict[NeckName, NeckPlan]":
    """The necks to train, of what is opened."""
    asked: dict[NeckName, tuple[float, nn.Module | None]] = {
        "detector": (config.DISTILL.DETECTOR.NECK, None if detector is None else detector.detector.neck),
        "tracker": (config.DISTILL.MASKS.NECK, None if masks is None else masks.predictor.neck),
    }
    return {
        name: NeckPlan(own, digest_neck(own.state_dict()), rate)
        for name, (rate, own) in asked.items()
        if rate and own is not None
    }


def _plan_detector(
    config: TrainConfig, manifest: StoreManifest, readers: Sequence[ObjectReader | None]
) -> DetectorPlan | None:
    """The detector in the loop, opened, with the phrases that it will be asked.

    Raises:
        UserError: it is missing, no SAM3 with a text encoder, or does not take the teacher's embeddings; SciPy is not
            installed; or there is nothing to ask by text.
    """
    values = {key.lower(): value for key, value in config.DISTILL.DETECTOR}
    path, given = values.pop("checkpoint"), values.pop("phrases")
    del values["neck"]
    if path is None:
        return None
    if find_spec("scipy") is None:
        raise UserError("DISTILL.DETECTOR needs SciPy: pip install 'efficientsam3[stage1]'.")
    listed = read_phrases(given) if isinstance(given, Path) else given
    nouns = {noun for reader in readers if reader is not None for noun in reader.nouns}
    # Imported here, since transformers takes seconds.
    from efficientsam3.sam3.decoders import check_fits
    from efficientsam3.sam3.detector import load_detector
    from efficientsam3.train.detector import DetectorSettings

    settings = DetectorSettings(**values)
    phrases = tuple(sorted(nouns | set(listed))) if settings.asks and settings.text else ()
    if settings.asks and settings.text and not phrases:
        raise UserError(
            f"DISTILL.DETECTOR.TEXT {config.DISTILL.DETECTOR.TEXT} asks by text, and {config.DATA.DATA_PATH} has no "
            "names of categories: list phrases as DISTILL.DETECTOR.PHRASES, or set TEXT 0."
        )
    detector = load_detector(path, phrases)
    check_fits("The teacher", (manifest.embed_dim, manifest.embed_size), manifest.preprocessing, detector)
    return DetectorPlan(detector, phrases, settings)


def _plan_probe(config: TrainConfig) -> ProbePlan | None:
    probe = config.PROBE
    if probe.DECODER is None:
        return None
    return ProbePlan(probe.DECODER, config.DATA.DATA_PATH, probe.IMAGES, probe.OBJECTS)


# Recorded where they differ from their defaults, as before there was a choice: older checkpoints go on without them.
_LATER = (
    *("DISTILL.PADDING", "TRAIN.LAYER_DECAY", "TRAIN.SMALL_EPOCHS"),
    *(f"DISTILL.{section}.{key}" for section in ("MASKS", "DETECTOR") for key in ("LEVELS", "NECK")),
)


def _record(config: TrainConfig, manifest: StoreManifest, detector: DetectorPlan | None) -> dict[str, Any]:
    """The configuration as checkpoints record it.

    The teacher's own numbers stand where it says `teacher`, and phrases where it names their file.
    """
    recorded: dict[str, Any] = json.loads(config.model_dump_json())
    recorded["DATA"]["IMG_SIZE"] = manifest.preprocessing.image_size
    for keys in _LATER:
        *sections, leaf = keys.split(".")
        settings: Section = reduce(getattr, sections, config)
        if getattr(settings, leaf) == type(settings).model_fields[leaf].default:
            del reduce(getitem, sections, recorded)[leaf]
    if config.DISTILL.MASKS.DECODER is None:  # as before there was one
        del recorded["DISTILL"]["MASKS"]
    if detector is None:
        del recorded["DISTILL"]["DETECTOR"]
    elif detector.phrases:
        recorded["DISTILL"]["DETECTOR"]["PHRASES"] = list(detector.phrases)
    recorded["DISTILL"] |= {"EMBED_DIM": manifest.embed_dim, "EMBED_SIZE": manifest.embed_size}
    return recorded


def _open_targets(config: TrainConfig, cache: bool) -> Targets:
    """The embeddings in the store, or those that the teacher computes in the loop.

    Raises:
        UserError: there is no store; or the teacher is missing, or does not fit.
    """
    if config.DISTILL.ONLINE:
        return ComputedTargets(_plan_online(config), cached=cache and config.DISTILL.ONLINE_CACHE is not None)
    directory = config.DISTILL.TEACHER_EMBED_PATH
    return StoredTargets(EmbeddingStore(directory, published_manifest(directory, config.DATA, config.DISTILL)))


def _check_options(config: TrainConfig) -> None:
    if config.TRAIN.USE_SYNC_BN and select_device(config.DEVICE).type != "cuda":
        raise UserError("--use-sync-bn needs GPUs: PyTorch has no synchronised BatchNorm on CPU or MPS, leave it out.")
    if config.MODEL.RESUME is not None:
        require_file(config.MODEL.RESUME, "MODEL.RESUME", "give a ckpt_epoch_N.pth, or leave it out")
    if isinstance(config.MODEL.PRETRAINED, Path):
        require_file(config.MODEL.PRETRAINED, "MODEL.PRETRAINED", "give a checkpoint file, true or false")


def _check_targets(config: TrainConfig, manifest: StoreManifest) -> None:
    found = (manifest.embed_dim, manifest.embed_size)
    given = map(given_size, (config.DISTILL.EMBED_DIM, config.DISTILL.EMBED_SIZE))
    shape = tuple(wanted or own for wanted, own in zip(given, found, strict=True))
    if shape != found:
        raise UserError(
            f"The store {config.DISTILL.TEACHER_EMBED_PATH} holds embeddings of {manifest.embed_dim} channels and "
            f"{manifest.embed_size} cells a side, not DISTILL.EMBED_DIM {shape[0]} and EMBED_SIZE {shape[1]}: set "
            "those to what it holds, or give another store."
        )
    if config.DATA.IMG_SIZE not in ("teacher", manifest.preprocessing.image_size):
        raise UserError(
            f"The store was embedded at {manifest.preprocessing.image_size} pixels, not DATA.IMG_SIZE "
            f"{config.DATA.IMG_SIZE}: train at the store's size, or embed again."
        )
    if config.DISTILL.PADDING and manifest.preprocessing.resize == "square":
        raise UserError(
            "DISTILL.PADDING has no effect on a store whose images fill the encoder's input: leave it false."
        )
    wanted = resolve_preprocessing(config.DATA, manifest.preprocessing.image_size, manifest.preprocessing)
    if not _same(wanted, manifest.preprocessing):
        raise UserError(
            f"The store was embedded with {manifest.preprocessing!r}, and the configuration asks for {wanted!r}: leave "
            "DATA.RESIZE, MEAN and STD at 'teacher', or embed again."
        )


def _same(left: Preprocessing, right: Preprocessing) -> bool:
    # Statistics typed in a YAML file have fewer digits than the constants here.
    return left.resize == right.resize and np.allclose([left.mean, left.std], [right.mean, right.std], atol=1e-6)


def _plan_online(config: TrainConfig) -> EmbedPlan:
    """The embeddings that this training computes."""
    return build_plan(
        config.DATA,
        config.TEACHER,
        config.DISTILL,
        augmentation=config.DISTILL.AUGMENT,
        store_dir=(config.DISTILL.ONLINE_CACHE or config.output_dir) / EMBEDDINGS_DIR,
        seed=config.SEED,
        amp=config.AMP_ENABLE,
        print_freq=config.PRINT_FREQ,
    )
