"""The teacher at work: the pictures of a plan, in batches, and their embeddings."""

from collections.abc import Iterator
from functools import partial

import torch

from efficientsam3.config.schema import ExportConfig
from efficientsam3.data.augment import Augmentation, augmentation_seed
from efficientsam3.data.loader import ImageBatch, ImageDataset, build_loader, collate_images
from efficientsam3.data.preprocess import Preprocessing, normalise
from efficientsam3.embed.plan import ExportPlan, Indices
from efficientsam3.models.teacher import Teacher, build_teacher, is_onnx
from efficientsam3.runtime.device import autocast_dtype
from efficientsam3.runtime.distributed import Process
from efficientsam3.runtime.errors import UserError
from efficientsam3.store.codecs import storable


def export_augmentation(config: ExportConfig) -> Augmentation:
    """The augmentation that teacher and student share."""
    return Augmentation(hflip=config.DATA.AUGMENT.HFLIP, color_jitter=config.DATA.AUGMENT.COLOR_JITTER)


def teacher_dtype(config: ExportConfig, process: Process) -> torch.dtype | None:
    """The dtype of the teacher's matrix products, None for float32."""
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
        teacher_dtype(config, process),
    )


def image_batches(
    config: ExportConfig, plan: ExportPlan, indices: list[Indices], process: Process
) -> Iterator[ImageBatch]:
    """Read the images that `indices` names in each split of the plan, as this run preprocesses them."""
    for split, of_split in zip(plan.splits, indices, strict=True):
        dataset = ImageDataset(
            split, of_split, plan.preprocessing, export_augmentation(config), partial(_seed, config.SEED)
        )
        yield from build_loader(
            dataset, config.DATA.BATCH_SIZE, config.DATA.NUM_WORKERS, collate_images, process.device
        )


def _seed(seed: int, image_id: str, row: int) -> int:
    return augmentation_seed(seed, image_id)


def embed_batch(
    teacher: Teacher, batch: ImageBatch, preprocessing: Preprocessing, device: torch.device
) -> torch.Tensor:
    """(B, D, E, E) float32 on the teacher's device; an empty batch gives an empty tensor."""
    if not batch.image_ids:
        return torch.empty(0, 1, 1, 1, device=device)
    pixels = batch.pixels.to(device, non_blocking=True)
    return teacher(normalise(pixels, batch.content_sizes.to(device), preprocessing))


def check_storable(batch: ImageBatch, embeddings: torch.Tensor) -> None:
    """Refuse embeddings that no codec can hold.

    Raises:
        UserError: one is not finite in float16; the sentence names its image.
    """
    for image_id, is_finite in zip(batch.image_ids, storable(embeddings).tolist(), strict=True):
        if not is_finite:
            raise not_storable(image_id)


def not_storable(image_id: str) -> UserError:
    """What to say of an embedding that is not finite in float16."""
    return UserError(
        f"The teacher's embedding of image {image_id!r} is not finite in float16: check the teacher's checkpoint and "
        "that picture, or use --disable-amp."
    )
