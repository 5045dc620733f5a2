"""Pictures as batches of encoder input, read by DataLoader workers; a broken picture is reported and left out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from efficientsam3.data.augment import Augmentation, augment, augmentation_seed
from efficientsam3.data.images import BrokenImageError, read_rgb
from efficientsam3.data.listing import ImageListing
from efficientsam3.data.preprocess import Preprocessing, resize_image
from efficientsam3.runtime.signals import end_by_parent_alone


@dataclass(frozen=True)
class ImageSample:
    """One picture, ready but for normalisation."""

    image_id: str
    pixels: torch.Tensor  # (3, S, S) uint8
    content_size: tuple[int, int]  # height, width in pixels, see resize_image
    seed: int


@dataclass
class ImageBatch:
    """Several pictures; `broken` holds one sentence for each that could not be read."""

    image_ids: list[str]
    pixels: torch.Tensor  # (B, 3, S, S) uint8
    content_sizes: torch.Tensor  # (B, 2) int64
    seeds: torch.Tensor  # (B,) int32
    broken: list[str]

    def pin_memory(self) -> Self:
        """Called by a DataLoader that pins."""
        self.pixels = self.pixels.pin_memory()
        return self


def read_sample(
    listing: ImageListing, index: int, seed: int, preprocessing: Preprocessing, augmentation: Augmentation
) -> ImageSample:
    """Read, augment and resize one picture.

    Raises:
        BrokenImageError: the picture cannot be read.
    """
    image = augment(read_rgb(listing.path(index)), seed, augmentation)
    pixels, content_size = resize_image(image, preprocessing)
    return ImageSample(listing.id(index), pixels, content_size, seed)


class ImageDataset(Dataset[ImageSample | BrokenImageError]):
    """The pictures of a listing; a broken one comes as its error, so that the others of its batch go on."""

    def __init__(
        self,
        listing: ImageListing,
        indices: npt.NDArray[np.intp],
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        seed: int,
    ) -> None:
        """Take those pictures of `listing` that `indices` names; `seed` is the run's SEED."""
        self._listing, self._indices = listing, indices
        self._preprocessing, self._augmentation, self._seed = preprocessing, augmentation, seed

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, item: int) -> ImageSample | BrokenImageError:
        index = int(self._indices[item])
        seed = augmentation_seed(self._seed, self._listing.id(index))
        try:
            return read_sample(self._listing, index, seed, self._preprocessing, self._augmentation)
        except BrokenImageError as error:
            return error


def collate_images(samples: list[ImageSample | BrokenImageError]) -> ImageBatch:
    """Stack what could be read."""
    whole = [sample for sample in samples if isinstance(sample, ImageSample)]
    return ImageBatch(
        [sample.image_id for sample in whole],
        torch.stack([sample.pixels for sample in whole]) if whole else torch.empty(0, 3, 0, 0, dtype=torch.uint8),
        torch.tensor([sample.content_size for sample in whole], dtype=torch.int64).reshape(-1, 2),
        torch.tensor([sample.seed for sample in whole], dtype=torch.int32),
        [str(sample) for sample in samples if isinstance(sample, BrokenImageError)],
    )


def build_loader(
    dataset: Dataset[Any],
    batch_size: int,
    num_workers: int,
    collate: Callable[[list[Any]], Any],
    device: torch.device,
    sampler: Sampler[int] | None = None,
) -> DataLoader[Any]:
    """A DataLoader that keeps its workers and pins memory where the device is a GPU; it yields what `collate` makes."""
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        persistent_workers=num_workers > 0,
        worker_init_fn=_start_worker,
        # It seeds the workers, which draw no random numbers; the global one would be moved by every new iteration.
        generator=torch.Generator(),
    )


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    end_by_parent_alone()
