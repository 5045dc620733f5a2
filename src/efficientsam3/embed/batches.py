"""The teacher at work: the images of a plan, in batches, and their embeddings."""

from collections.abc import Iterable, Iterator
from functools import partial

import torch

from efficientsam3.data.augment import augmentation_seed
from efficientsam3.data.loader import ImageBatch, ImageDataset, build_loader, collate_images
from efficientsam3.data.preprocess import normalise
from efficientsam3.embed.plan import EmbedPlan, Indices
from efficientsam3.models.teacher import Teacher, build_teacher
from efficientsam3.runtime.device import copy_to
from efficientsam3.runtime.distributed import Process
from efficientsam3.runtime.errors import UserError
from efficientsam3.store.records import storable


def load_teacher(plan: EmbedPlan, process: Process) -> Teacher:
    """The teacher of this run, on this process's device."""
    teacher = build_teacher(plan.teacher, plan.manifest.preprocessing, process.device, plan.amp)
    if plan.compile_teacher:
        teacher.compile(plan.batch_size)
    return teacher


def image_batches(plan: EmbedPlan, indices: list[Indices], process: Process) -> Iterator[ImageBatch]:
    """Read the images that `indices` names in each split of the plan, as this run preprocesses them."""
    manifest = plan.manifest
    seed = partial(seed_by_id, manifest.seed)
    for split, of_split in zip(plan.splits, indices, strict=True):
        dataset = ImageDataset(split, of_split, manifest.preprocessing, manifest.augmentation, seed)
        yield from build_loader(dataset, plan.batch_size, plan.num_workers, collate_images, process.device)


def seed_by_id(seed: int, image_id: str, row: int) -> int:
    """A `SeedOf` once it is given the run's seed."""
    return augmentation_seed(seed, image_id)


def embed_batch(teacher: Teacher, batch: ImageBatch, device: torch.device) -> torch.Tensor:
    """(B, D, E, E) float32 on `device`, which is the teacher's; an empty batch gives an empty tensor."""
    if not batch.image_ids:
        return torch.empty(0, 1, 1, 1, device=device)
    pixels, sizes = (copy_to(device, each) for each in (batch.pixels, batch.content_sizes))
    return teacher(normalise(pixels, sizes, teacher.preprocessing))


def check_storable(batch: ImageBatch, embeddings: torch.Tensor) -> None:
    """Refuse embeddings that no codec can hold.

    Raises:
        UserError: an embedding is not finite in float16; the sentence names its image.
    """
    refuse_unstorable(batch, storable(embeddings).tolist())


def refuse_unstorable(batch: ImageBatch, are_storable: Iterable[float]) -> None:
    """`check_storable`, of what `storable` said of each image."""
    for image_id, is_storable in zip(batch.image_ids, are_storable, strict=True):
        if not is_storable:
            raise not_storable(image_id)


def not_storable(image_id: str) -> UserError:
    """The refusal of an embedding that is not finite in float16."""
    return UserError(
        f"The teacher's embedding of image {image_id!r} is not finite in float16: check the teacher's checkpoint and "
        "that image, or use --disable-amp."
    )
