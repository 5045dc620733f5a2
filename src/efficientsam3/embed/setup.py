"""The manifest and the projection of the store that an export writes to."""

import logging
from collections.abc import Iterator

import numpy as np
import torch

from efficientsam3.config.schema import ExportConfig
from efficientsam3.embed.batches import (
    check_storable,
    embed_batch,
    export_augmentation,
    image_batches,
    load_teacher,
    teacher_dtype,
)
from efficientsam3.embed.plan import ExportPlan
from efficientsam3.models.teacher import teacher_hash
from efficientsam3.runtime.distributed import Process, broadcast
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.store.codecs import pca_components
from efficientsam3.store.manifest import (
    Manifest,
    ProjectionIdentity,
    TeacherIdentity,
    read_manifest,
    write_manifest,
)
from efficientsam3.store.projection import PROJECTION_IMAGES, fit_projection, save_projection

logger = logging.getLogger(LOGGER_NAME)


def prepare_store(config: ExportConfig, plan: ExportPlan, process: Process) -> Manifest:
    """Write the manifest, or compare it with the one that is there, on rank 0; a refusal reaches every rank."""
    problem: str | None = None
    manifest: Manifest | None = None
    if process.is_main:
        try:
            manifest = _with_projection(config, plan, process, _describe(config, plan, process))
            write_manifest(plan.store_dir, manifest)
        except UserError as error:
            problem = str(error)
    problem, manifest = broadcast((problem, manifest))
    if problem is not None:
        raise UserError(problem)
    assert manifest is not None
    return manifest


def _describe(config: ExportConfig, plan: ExportPlan, process: Process) -> Manifest:
    return Manifest(
        codec=config.DISTILL.CODEC,
        embed_dim=config.DISTILL.EMBED_DIM,
        embed_size=config.DISTILL.EMBED_SIZE,
        preprocessing=plan.preprocessing,
        augmentation=export_augmentation(config),
        seed=config.SEED,
        teacher=TeacherIdentity(
            name=config.MODEL.NAME,
            sha256=teacher_hash(config.MODEL.RESUME),
            compute_dtype=str(teacher_dtype(config, process) or torch.float32).removeprefix("torch."),
        ),
    )


def _with_projection(config: ExportConfig, plan: ExportPlan, process: Process, manifest: Manifest) -> Manifest:
    """Name the projection that the store has, or fit one on the first images where the codec needs one and none is."""
    components, present = pca_components(manifest.codec), read_manifest(plan.store_dir)
    if components is None or present is not None:
        return manifest.model_copy(update={"projection": present.projection if present else None})
    logger.info("fitting %s on the first %d images", manifest.codec, min(PROJECTION_IMAGES, plan.count))
    teacher = load_teacher(config, plan.preprocessing, process)
    # One process does it, in a fixed order, so that the outcome does not depend on how many there are.
    first = np.arange(min(PROJECTION_IMAGES, plan.count))
    starts = np.cumsum([0, *map(len, plan.splits)])
    indices = [
        first[(first >= start) & (first < start + len(split))] - start
        for start, split in zip(starts, plan.splits, strict=False)
    ]
    fitted: list[str] = []

    def embeddings() -> Iterator[torch.Tensor]:
        for batch in image_batches(config, plan, indices, process):
            if batch.image_ids:
                fitted.extend(batch.image_ids)
                embedded = embed_batch(teacher, batch, plan.preprocessing, process.device)
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
