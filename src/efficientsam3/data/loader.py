"""Images as batches of encoder input, read by DataLoader workers. One that cannot be read is reported and skipped."""

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from efficientsam3.data.augment import Augmentation, augment, flips
from efficientsam3.data.images import UNKNOWN_IMAGE, ImageStamp, read_stamped
from efficientsam3.data.listing import ImageListing
from efficientsam3.data.objects import ImageObjects, ObjectReader, wrong_size
from efficientsam3.data.preprocess import Preprocessing, resize_image
from efficientsam3.runtime.device import usable_cores
from efficientsam3.runtime.environment import count_from
from efficientsam3.runtime.errors import UnreadableError, UserError
from efficientsam3.runtime.signals import end_by_parent_alone

PADDING = -1  # what a sampler yields for a process with one image fewer than the others; nothing is read
NO_ROW = -1  # the row of an image without a stored embedding
SeedOf = Callable[[str, int], int]  # the seed of an image's augmentation, by its id and row


@dataclass(frozen=True)
class ImageSample:
    """One image, ready except for normalisation."""

    image_id: str
    pixels: torch.Tensor  # (3, S, S) uint8
    content_size: tuple[int, int]  # height, width in pixels, see resize_image
    seed: int
    row: int = NO_ROW
    stamp: ImageStamp = UNKNOWN_IMAGE
    objects: ImageObjects | None = None  # in pixels of the input; None where they are not known or not wanted


@dataclass
class ImageBatch:
    """Several images; `broken` holds one sentence for each that could not be read."""

    image_ids: list[str]
    pixels: torch.Tensor  # (B, 3, S, S) uint8
    content_sizes: torch.Tensor  # (B, 2) int64
    seeds: torch.Tensor  # (B,) int32
    rows: list[int]  # where the embeddings are, see `Targets.rows`; NO_ROW for a stand-in
    broken: list[str]
    stamps: list[ImageStamp] = field(default_factory=list, kw_only=True)  # of the images' files
    objects: list[ImageObjects | None] = field(default_factory=list, kw_only=True)  # in pixels of the input

    def pin_memory(self) -> Self:
        """Called by a DataLoader that pins."""
        self.pixels = self.pixels.pin_memory()
        self.content_sizes = self.content_sizes.pin_memory()
        return self


def read_sample(
    listing: ImageListing,
    index: int,
    seed: int,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    row: int = NO_ROW,
    objects: ImageObjects | None = None,
) -> ImageSample:
    """Read, augment and resize one image, and its objects with it.

    Raises:
        BrokenImageError: the image cannot be read.
        BrokenAnnotationError: its objects are of an image of another size.
    """
    path = listing.path(index)
    image, stamp = read_stamped(path)
    pixels, content_size = resize_image(augment(image, seed, augmentation), preprocessing)
    if objects is not None:
        if objects.size != tuple(image.shape[-2:]):
            raise wrong_size(path, tuple(image.shape[-2:]), objects.size)
        objects = objects.placed(content_size, flips(seed, augmentation))
    return ImageSample(listing.id(index), pixels, content_size, seed, row, stamp, objects)


class ImageDataset(Dataset[ImageSample | UserError | None]):
    """Images of a listing. An unreadable image becomes its error, so that the rest of its batch can be used."""

    def __init__(
        self,
        listing: ImageListing,
        indices: npt.NDArray[np.intp],
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        seed_of: SeedOf,
        rows: npt.NDArray[np.int64] | None = None,
        objects_of: ObjectReader | None = None,
    ) -> None:
        """Select images of a listing.

        Args:
            listing: all images of a split.
            indices: (N,) positions in the listing.
            preprocessing: how they become the encoder's input.
            augmentation: random changes before that.
            seed_of: gives the seed of an image's augmentation.
            rows: (N,) rows of their embeddings in the store; None without a store.
            objects_of: reads an image's annotated objects, by its place in the listing; None where nothing needs them.
        """
        self.listing = listing
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self.rows = np.full(len(indices), NO_ROW) if rows is None else rows
        self._indices = indices
        self._seed_of = seed_of
        self._objects_of = objects_of

    def __len__(self) -> int:
        return len(self._indices)

    def index(self, item: int) -> int:
        """Where an item is in the listing."""
        return int(self._indices[item])

    def seed(self, item: int) -> int:
        """The seed of an item's augmentation.

        Raises:
            UserError: the seed is in a store, and cannot be read.
        """
        return self._seed_of(self.listing.id(self.index(item)), int(self.rows[item]))

    def __getitem__(self, item: int) -> ImageSample | UserError | None:
        if item == PADDING:
            return None
        try:
            return read_sample(
                self.listing,
                self.index(item),
                self.seed(item),
                self.preprocessing,
                self.augmentation,
                int(self.rows[item]),
                None if self._objects_of is None else self._objects_of(self.index(item)),
            )
        except UserError as error:
            return error  # an UnreadableError is raised by `ImageLoader`


Collate = Callable[[list[ImageSample | UserError | None]], ImageBatch]
_SHARED_MEMORY = Path("/dev/shm")
_MOST_READERS = 16
_AHEAD = 2  # batches that each reading process reads ahead


def collate_images(samples: list[ImageSample | UserError | None]) -> ImageBatch:
    """Stack the images that could be read, possibly none."""
    whole = [sample for sample in samples if isinstance(sample, ImageSample)]
    return ImageBatch(
        [sample.image_id for sample in whole],
        torch.stack([sample.pixels for sample in whole]) if whole else torch.empty(0, 3, 0, 0, dtype=torch.uint8),
        torch.tensor([sample.content_size for sample in whole], dtype=torch.int64).reshape(-1, 2),
        torch.tensor([sample.seed for sample in whole], dtype=torch.int32),
        [sample.row for sample in whole],
        [str(sample) for sample in samples if isinstance(sample, UserError)],
        stamps=[sample.stamp for sample in whole],
        objects=[sample.objects for sample in whole],
    )


def collate_never_empty(samples: list[ImageSample | UserError | None], image_size: int) -> ImageBatch:
    """`collate_images`, with a grey stand-in if none could be read: under DDP every process must take every step."""
    if not any(isinstance(sample, ImageSample) for sample in samples):
        pixels = torch.full((3, image_size, image_size), 127, dtype=torch.uint8)
        samples = [*samples, ImageSample("", pixels, (image_size, image_size), 0)]
    return collate_images(samples)


class ImageLoader:
    """Batches of a dataset, read by processes that are kept from one pass to the next."""

    def __init__(self, loader: DataLoader[ImageBatch | UserError]) -> None:
        """Give the batches of `loader`, whose workers hand over errors in place of batches."""
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[ImageBatch]:
        """Raises UserError: a file cannot be read, whatever it holds; or there is no memory to hand batches over."""
        for batch in self._loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch


def build_loader(
    dataset: Dataset[Any],
    batch_size: int,
    num_workers: int,
    collate: Collate,
    device: torch.device,
    sampler: Sampler[int] | None = None,
) -> ImageLoader:
    """A loader that keeps its workers and pins memory where the device is a GPU."""
    loader = DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=partial(_hand_over, collate=collate),
        pin_memory=device.type == "cuda",
        persistent_workers=num_workers > 0,
        prefetch_factor=_AHEAD if num_workers else None,
        worker_init_fn=_start_worker,
        # It seeds the workers, which draw no random numbers; the global one would be moved by every new iteration.
        generator=torch.Generator(),
    )
    return ImageLoader(loader)


def count_readers(setting: Literal["auto"] | int) -> int:
    """The number of image-reading processes of this process: `auto` shares this machine's cores with its peers.

    A core reads about 66 images/s (docs/training.md), and a GPU trains most students on several times as many.
    """
    if setting != "auto":
        return setting
    return max(1, min(_MOST_READERS, usable_cores() // count_from("LOCAL_WORLD_SIZE", 1, least=1)))


def read_ahead(num_workers: int) -> int:
    """The number of batches that a loader has read, or is reading, before anyone asks for them."""
    return _AHEAD * num_workers


def check_shared_memory(images: int, image_size: int, batch_size: int, num_workers: int) -> None:
    """Check that the workers of a loader can hand their batches over at all; later, a batch may still find no room.

    Raises:
        UserError: /dev/shm is too small, as it is in a container unless one asks for more.
    """
    if not num_workers or not _SHARED_MEMORY.is_dir():
        return
    # One batch of each worker, and the one that is computed on.
    batches = min(num_workers + 1, math.ceil(images / batch_size))
    needed, free = batches * batch_size * 3 * image_size**2, shutil.disk_usage(_SHARED_MEMORY).free
    if needed > free:
        raise UserError(_no_room(f"{needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} are free"))


def _no_room(reason: str) -> str:
    return (
        f"{_SHARED_MEMORY} has no room for the batches of the image-reading processes ({reason}): make it larger "
        "(docker run --shm-size 8g), or set DATA.NUM_WORKERS or the batch size lower; with --opts DATA.NUM_WORKERS 0, "
        "nothing is kept there."
    )


def _hand_over(samples: list[ImageSample | UserError | None], collate: Collate) -> ImageBatch | UserError:
    """A batch, in a worker already in shared memory: if that failed any later, the parent would wait for ever."""
    for sample in samples:
        if isinstance(sample, UnreadableError):
            return sample
    batch = collate(samples)
    if get_worker_info() is not None:
        try:
            batch.pixels.share_memory_()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            return UserError(_no_room(" ".join(str(error).split())))
    return batch


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    end_by_parent_alone()
