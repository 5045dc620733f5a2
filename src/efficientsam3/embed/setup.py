"""Beginning a store: its manifest, and its projection where the codec needs one."""

import logging
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import torch

from efficientsam3.embed.batches import check_storable, embed_batch, image_batches, load_teacher
from efficientsam3.embed.plan import EmbedPlan, pick
from efficientsam3.runtime.distributed import Process, on_main
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.store.codecs import pca_components
from efficientsam3.store.manifest import (
    ProjectionIdentity,
    StoreManifest,
    TeacherIdentity,
    read_store_manifest,
    write_store_manifest,
)
from efficientsam3.store.projection import PROJECTION_IMAGES, fit_projection, save_projection
from efficientsam3.store.reader import EmbeddingStore, replaced_image

logger = logging.getLogger(LOGGER_NAME)


def prepare_store(plan: EmbedPlan, process: Process) -> StoreManifest:
    """Write the store's manifest, or compare it with the one that is there.

    Rank 0 does it; a refusal reaches every rank.

    Raises:
        UserError: the store was begun with other settings, an image is not the one that was embedded, or a projection
            cannot be fitted.
    """

    def prepare() -> StoreManifest:
        manifest = _with_projection(plan, process, _with_teacher(plan, process))
        write_store_manifest(plan.store_dir, manifest)
        _refuse_replaced(plan)
        return manifest

    return on_main(process, prepare)


def _with_teacher(plan: EmbedPlan, process: Process) -> StoreManifest:
    dtype = str(plan.teacher.compute_dtype(process.device, plan.amp)).removeprefix("torch.")
    identity = TeacherIdentity(name=plan.teacher.name, sha256=plan.teacher.sha256(), compute_dtype=dtype)
    return plan.manifest.model_copy(update={"teacher": identity})


def _with_projection(plan: EmbedPlan, process: Process, manifest: StoreManifest) -> StoreManifest:
    """Name the store's projection; a new store whose codec needs one gets one that is fitted on the first images."""
    components, present = pca_components(manifest.codec), read_store_manifest(plan.store_dir)
    if components is None or present is not None:
        return manifest.model_copy(update={"projection": present.projection if present else None})
    logger.info("fitting %s on the first %d images", manifest.codec, min(PROJECTION_IMAGES, plan.count))
    teacher = load_teacher(plan, process)
    # One process does it, in a fixed order, so that the result does not depend on how many there are.
    everything = [np.arange(len(split)) for split in plan.splits]
    indices = pick(everything, np.arange(min(PROJECTION_IMAGES, plan.count)))
    fitted: list[str] = []

    def embeddings() -> Iterator[torch.Tensor]:
        for batch in image_batches(plan, indices, process):
            if batch.image_ids:
                fitted.extend(batch.image_ids)
                embedded = embed_batch(teacher, batch, process.device)
                check_storable(batch, embedded)
                yield embedded

    projection = fit_projection(embeddings(), components)
    logger.info("%s keeps %.2f %% of their variance", manifest.codec, 100 * projection.variance_kept)
    identity = ProjectionIdentity(
        sha256=save_projection(plan.store_dir, projection),
        variance_kept=projection.variance_kept,
        images=len(fitted),
    )
    return manifest.model_copy(update={"projection": identity})


def _refuse_replaced(plan: EmbedPlan) -> None:
    """Refuse images whose files have other sizes than when they were embedded.

    That finds most images that were replaced or renamed, without reading them. Whatever reads an image with its record
    compares all that the file holds.
    """
    store = EmbeddingStore(plan.store_dir)
    replaced: list[str] = []
    for split in plan.splits:
        rows = store.rows(split.ids)
        present = np.flatnonzero(rows >= 0)
        sizes = store.image_sizes(rows[present])
        for index, row, size in zip(present.tolist(), rows[present].tolist(), sizes.tolist(), strict=True):
            with suppress(OSError):  # it is reported where it is read
                differs = size and split.path(index).stat().st_size != size
                if differs and store.read_image_stamp(row).size == size:  # whose entry holds
                    replaced.append(split.id(index))
    if replaced:
        raise replaced_image(replaced[0], plan.store_dir, len(replaced))
