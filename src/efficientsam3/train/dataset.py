"""The pictures of a training, and where their embeddings are stored."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from efficientsam3.data.listing import ImageListing
from efficientsam3.data.loader import ImageSample, read_sample
from efficientsam3.runtime.errors import UserError
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.train.sampler import PADDING

STAND_IN = -1  # the row of a picture that has none
Item = tuple[ImageSample, int] | UserError | None


@dataclass
class PictureBatch:
    """Pictures as DataLoader workers give them; their records are read elsewhere, see `records`.

    A batch always holds a picture: where there is none to show, one grey stand-in, since under DDP every process has to
    take every step.
    """

    image_ids: list[str]
    pixels: torch.Tensor  # (B, 3, S, S) uint8
    content_sizes: torch.Tensor  # (B, 2) int64
    rows: list[int]  # of the store; STAND_IN of a stand-in
    broken: list[str]  # a sentence for each picture or record that could not be read

    def pin_memory(self) -> Self:
        """Called by a DataLoader that pins."""
        self.pixels, self.content_sizes = self.pixels.pin_memory(), self.content_sizes.pin_memory()
        return self


class DistillDataset(Dataset[Item]):
    """The images of a listing that the store has, each with its row there; its seed there drives the augmentation.

    A picture that cannot be read comes as its error, so that the others of its batch go on; a sampler's PADDING comes
    as None.
    """

    def __init__(self, listing: ImageListing, store: EmbeddingStore) -> None:
        """Pair the two by image id; preprocessing and augmentation are those of the store's manifest."""
        rows = store.rows(listing.ids)
        self.listing, self._store = listing, store
        self._indices: npt.NDArray[np.intp] = np.flatnonzero(rows >= 0)
        self._rows = rows[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def file_order(self) -> npt.NDArray[np.int64]:
        """(N,) items in the order in which their records lie on the disk."""
        return self._store.index.in_file_order(self._rows)

    def place(self, item: int) -> tuple[int, int]:
        """Where an item is: its index in the listing, and its row in the store."""
        return int(self._indices[item]), int(self._rows[item])

    def seed(self, item: int) -> int:
        """What an item's augmentation is drawn from; 0 where nothing is drawn, since every seed costs a disk a seek."""
        return 0 if self._store.manifest.augmentation.is_off else self._store.read_seed(int(self._rows[item]))

    def __getitem__(self, item: int) -> Item:
        if item == PADDING:
            return None
        manifest = self._store.manifest
        index, row = self.place(item)
        try:
            return read_sample(self.listing, index, self.seed(item), manifest.preprocessing, manifest.augmentation), row
        except UserError as error:
            return error

    def collate(self, items: list[Item]) -> PictureBatch:
        """Stack what could be read."""
        whole = [item for item in items if item is not None and not isinstance(item, UserError)] or [self._stand_in()]
        return PictureBatch(
            [sample.image_id for sample, _ in whole],
            torch.stack([sample.pixels for sample, _ in whole]),
            torch.tensor([sample.content_size for sample, _ in whole]),
            [row for _, row in whole],
            [str(item) for item in items if isinstance(item, UserError)],
        )

    def _stand_in(self) -> tuple[ImageSample, int]:
        side = self._store.manifest.preprocessing.image_size
        return ImageSample("", torch.full((3, side, side), 127, dtype=torch.uint8), (side, side), 0), STAND_IN
