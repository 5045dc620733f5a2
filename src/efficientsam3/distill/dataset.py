"""Pictures and their stored embeddings, side by side."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from efficientsam3.data.dataset import ImageSample, read_sample
from efficientsam3.data.listing import ImageListing
from efficientsam3.distill.sampler import PADDING
from efficientsam3.embeddings.codecs import unpack_seeds
from efficientsam3.embeddings.reader import EmbeddingStore
from efficientsam3.runtime.errors import UserError

_TENSORS = ("pixels", "content_sizes", "records", "weights")
Item = tuple[ImageSample, torch.Tensor] | UserError | None


@dataclass
class DistillBatch:
    """Pictures with undecoded embeddings.

    A batch always holds a picture: where there is none to show, one grey stand-in of weight 0, since under DDP every
    process has to take every step.
    """

    image_ids: list[str]
    pixels: torch.Tensor  # (B, 3, S, S) uint8
    content_sizes: torch.Tensor  # (B, 2) int64
    records: torch.Tensor  # (B, record_size) uint8
    weights: torch.Tensor  # (B,) float32
    broken: list[str]

    def pin_memory(self) -> Self:
        """Called by a DataLoader that pins."""
        for name in _TENSORS:
            setattr(self, name, getattr(self, name).pin_memory())
        return self

    def to(self, device: torch.device) -> Self:
        """Move it, without waiting where its memory is pinned."""
        for name in _TENSORS:
            setattr(self, name, getattr(self, name).to(device, non_blocking=True))
        return self

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All that lies on a device."""
        return tuple(getattr(self, name) for name in _TENSORS)


class DistillDataset(Dataset[Item]):
    """The images of a listing that the store has, each with its record; the record's seed drives the augmentation.

    A picture that cannot be read, or a damaged record, comes as its error, so that the others of its batch go on; a
    sampler's PADDING comes as None.
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

    def __getitem__(self, item: int) -> Item:
        if item == PADDING:
            return None
        manifest = self._store.manifest
        index, row = self.place(item)
        try:
            record = self._store.read(row)
            seed = int(unpack_seeds(record[None])[0])
            return read_sample(self.listing, index, seed, manifest.preprocessing, manifest.augmentation), record
        except UserError as error:
            return error

    def collate(self, items: list[Item]) -> DistillBatch:
        """Stack what could be read."""
        whole = [item for item in items if item is not None and not isinstance(item, UserError)]
        weight = 1.0 if whole else 0.0
        whole = whole or [self._stand_in()]
        # Of an image that the teacher has yet to embed there is the seed alone; then it embeds the whole batch.
        width = min(len(record) for _, record in whole)
        return DistillBatch(
            [sample.image_id for sample, _ in whole],
            torch.stack([sample.pixels for sample, _ in whole]),
            torch.tensor([sample.content_size for sample, _ in whole]),
            torch.stack([record[:width] for _, record in whole]),
            torch.full((len(whole),), weight),
            [str(item) for item in items if isinstance(item, UserError)],
        )

    def _stand_in(self) -> tuple[ImageSample, torch.Tensor]:
        manifest = self._store.manifest
        side = manifest.preprocessing.image_size
        grey = ImageSample("", torch.full((3, side, side), 127, dtype=torch.uint8), (side, side), 0)
        return grey, torch.zeros(manifest.record_size, dtype=torch.uint8)
