"""Image encoders that are paired with a separate decoder: modules, embedding stores, noise."""

import os
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from efficientsam3.data.augment import augmentation_seed
from efficientsam3.data.preprocess import Preprocessing, prepare
from efficientsam3.runtime.errors import UserError
from efficientsam3.store.reader import EmbeddingStore


class Encoder(Protocol):
    """From an image to its embedding."""

    preprocessing: Preprocessing

    def embed(self, image_id: str, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (3, H, W) uint8 to (1, D, G, G) float32."""
        ...

    def has(self, image_id: str) -> bool:
        """Whether there is an embedding of that image."""
        ...


class ModuleEncoder:
    """A network from normalised pixels (1, 3, S, S) to (1, D, G, G)."""

    def __init__(
        self, network: Callable[[torch.Tensor], torch.Tensor], preprocessing: Preprocessing, device: torch.device
    ) -> None:
        """Take a network in eval mode, on `device`."""
        self._network, self.preprocessing, self._device = network, preprocessing, device

    @torch.inference_mode()
    def embed(self, image_id: str, pixels: torch.Tensor) -> torch.Tensor:
        """See `Encoder`."""
        return self._network(prepare(pixels, self.preprocessing, self._device))

    def has(self, image_id: str) -> bool:
        """True for every image."""
        return True


class StoreEncoder:
    """A teacher's embeddings as they are stored; nothing is computed."""

    def __init__(self, store: EmbeddingStore) -> None:
        """Take a store.

        Raises:
            UserError: its images may have been flipped, so that their masks would not fit.
        """
        if store.manifest.augmentation.hflip > 0:
            raise UserError(
                f"The store {store.directory} has embeddings of flipped images (hflip "
                f"{store.manifest.augmentation.hflip}), which ground truth does not fit: embed without DATA.AUGMENT."
            )
        self._store, self.preprocessing = store, store.manifest.preprocessing

    def embed(self, image_id: str, pixels: torch.Tensor) -> torch.Tensor:
        """See `Encoder`.

        Raises:
            UserError: the record is damaged.
        """
        return self._store.decode(self._store.read(self._row(image_id))[None])[1]

    def has(self, image_id: str) -> bool:
        """See `Encoder`."""
        return self._row(image_id) >= 0

    def _row(self, image_id: str) -> int:
        return int(self._store.rows(np.array([os.fsencode(image_id)]))[0])


class RandomEncoder:
    """Normal noise, which says nothing about the image: what the prompt alone is worth."""

    def __init__(self, shape: tuple[int, int], preprocessing: Preprocessing, std: float, seed: int) -> None:
        """Noise of (D, G, G) for `shape` (D, G), each image's own by its name and the seed.

        The result depends on the standard deviation: a decoder makes more of an embedding of zeros than of loud noise.
        """
        self._shape, self.preprocessing, self._std, self._seed = (1, *shape, shape[1]), preprocessing, std, seed

    def embed(self, image_id: str, pixels: torch.Tensor) -> torch.Tensor:
        """See `Encoder`."""
        generator = torch.Generator().manual_seed(augmentation_seed(self._seed, image_id))
        return self._std * torch.randn(self._shape, generator=generator)

    def has(self, image_id: str) -> bool:
        """True for every image."""
        return True
