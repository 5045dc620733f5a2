"""Check a store against its teacher: recompute a sample of the embeddings, or all, and compare."""

import logging
from dataclasses import dataclass

import numpy as np
import torch

from efficientsam3.data.loader import ImageBatch
from efficientsam3.embed.batches import embed_batch, image_batches, load_teacher
from efficientsam3.embed.plan import EmbedPlan, Indices, pick
from efficientsam3.embed.setup import prepare_store
from efficientsam3.runtime.distributed import Process, all_gather
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.runtime.progress import progress_bar
from efficientsam3.store.codecs import parse_codec
from efficientsam3.store.reader import EmbeddingStore

logger = logging.getLogger(LOGGER_NAME)


@dataclass(frozen=True)
class ImageError:
    """One stored embedding against the recomputed one."""

    image_id: str
    absolute: float
    relative: float
    cosine: float
    beyond_codec: float  # relative error against what the codec makes of the recomputed embedding


@dataclass(frozen=True)
class StoreAgreement:
    """Stored against recomputed embeddings, over all images compared."""

    images: int
    mean_absolute_error: float
    relative_error: float  # mean over images of |stored - computed| / |computed| (Frobenius norms)
    worst_relative_error: float
    worst_image: str
    cosine: float  # mean over images and cells
    disagreeing: tuple[str, ...]  # ids whose error, the codec's own excluded, is beyond the tolerance
    tolerance: float


def check_saved_embeddings(plan: EmbedPlan, process: Process, samples: int = 0) -> StoreAgreement:
    """Recompute stored embeddings with the teacher.

    Args:
        plan: of the run that wrote the store.
        process: this process among its peers; they share the images.
        samples: check that many images, evenly spread; 0 means all.

    Raises:
        UserError: there is no store, images of the dataset are missing in it, or an embedding differs from what the
            codec makes of the recomputed one by more than the codec's `tolerance`, relatively.
    """
    if not plan.store_dir.is_dir():
        raise UserError(
            f"There is no embedding store in {plan.store_dir} to check: embed the dataset first, or give its --output."
        )
    prepare_store(plan, process)
    store = EmbeddingStore(plan.store_dir)
    chosen = _choose(plan, store, samples)
    mine = [indices[process.rank :: process.world_size] for indices in chosen]
    teacher = load_teacher(plan, process)
    errors: list[ImageError] = []
    with progress_bar("check", sum(map(len, mine)), process.is_main) as advance:
        for batch in image_batches(plan, mine, process):
            errors += _compare(batch, embed_batch(teacher, batch, process.device), store)
            advance(len(batch.image_ids) + len(batch.broken))
    tolerance = parse_codec(store.manifest.codec)[0].tolerance
    agreement = _summarise([error for of_rank in all_gather(errors) for error in of_rank], tolerance)
    if process.is_main:
        _report(plan, store, agreement)
    if agreement.disagreeing:
        raise UserError(
            f"{len(agreement.disagreeing)} of {agreement.images} stored embeddings differ from the teacher's by more "
            f"than {tolerance:g} (worst: image {agreement.worst_image!r}, {agreement.worst_relative_error:.3g}): check "
            "that the teacher's checkpoint and the images are those that the store was made with."
        )
    return agreement


def _choose(plan: EmbedPlan, store: EmbeddingStore, samples: int) -> list[Indices]:
    present = [np.flatnonzero(store.rows(split.ids) >= 0) for split in plan.splits]
    total = sum(map(len, present))
    if total == 0:
        raise UserError(f"The store {plan.store_dir} has no embedding of any image in the dataset: embed it first.")
    if samples == 0 or samples >= total:
        return present
    return pick(present, np.linspace(0, total - 1, samples).round().astype(np.intp))


def _compare(batch: ImageBatch, computed: torch.Tensor, store: EmbeddingStore) -> list[ImageError]:
    if not batch.image_ids:
        return []
    ids = np.array([image_id.encode() for image_id in batch.image_ids], dtype=np.bytes_)
    rows = [int(row) for row in store.rows(ids)]
    for row, stamp in zip(rows, batch.stamps, strict=True):
        store.check_image(row, stamp)
    records = torch.stack([store.read(row) for row in rows])
    seeds, stored = store.decode(records.to(computed.device))
    if not torch.equal(seeds.cpu(), batch.seeds):
        raise UserError(
            f"The store {store.directory} has other augmentation seeds than SEED gives: use the SEED it was made with."
        )
    difference = stored - computed
    beyond = stored - store.codec.decode(store.codec.encode(computed))
    relative = difference.flatten(1).norm(dim=1) / computed.flatten(1).norm(dim=1)
    cosine = torch.nn.functional.cosine_similarity(stored, computed, dim=1).flatten(1).mean(dim=1)
    absolute = difference.abs().flatten(1).mean(dim=1)
    beyond_codec = beyond.flatten(1).norm(dim=1) / computed.flatten(1).norm(dim=1)
    columns = (absolute.tolist(), relative.tolist(), cosine.tolist(), beyond_codec.tolist())
    return [ImageError(*row) for row in zip(batch.image_ids, *columns, strict=True)]


def _summarise(errors: list[ImageError], tolerance: float) -> StoreAgreement:
    assert errors
    worst = max(errors, key=lambda error: error.relative)
    return StoreAgreement(
        images=len(errors),
        mean_absolute_error=float(np.mean([error.absolute for error in errors])),
        relative_error=float(np.mean([error.relative for error in errors])),
        worst_relative_error=worst.relative,
        worst_image=worst.image_id,
        cosine=float(np.mean([error.cosine for error in errors])),
        # A NaN is above every tolerance.
        disagreeing=tuple(error.image_id for error in errors if not error.beyond_codec <= tolerance),
        tolerance=tolerance,
    )


def _report(plan: EmbedPlan, store: EmbeddingStore, agreement: StoreAgreement) -> None:
    if len(store) < plan.count:
        logger.warning("%d of %d images have no embedding in the store yet", plan.count - len(store), plan.count)
    logger.info(
        "%d of %d records agree with the teacher: mean absolute error %.3g, relative error %.3g (worst %.3g, image "
        "%s), cosine %.6f, tolerance %g relative to what codec %s keeps",
        agreement.images - len(agreement.disagreeing),
        agreement.images,
        agreement.mean_absolute_error,
        agreement.relative_error,
        agreement.worst_relative_error,
        agreement.worst_image,
        agreement.cosine,
        agreement.tolerance,
        store.manifest.codec,
    )
