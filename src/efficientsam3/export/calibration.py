"""The images that an export is measured and calibrated on."""

from collections.abc import Iterator
from pathlib import Path

import torch

from efficientsam3.data.find import find_images
from efficientsam3.data.images import read_rgb
from efficientsam3.data.preprocess import Preprocessing, prepare

_MADE = ("noise", "disc")


class EncoderInputs:
    """Images as encoder inputs, read when they are needed."""

    def __init__(self, folder: Path | None, preprocessing: Preprocessing, most: int) -> None:
        """Look for images.

        Args:
            folder: of images; None for two that are made up, noise and a bright disc on a slope of grey.
            preprocessing: of the model.
            most: how many are used, the first by name.

        Raises:
            UserError: the folder has none.
        """
        self._paths = [] if folder is None else find_images([str(folder)])[:most]
        self._preprocessing = preprocessing
        self.names = tuple(path.name for path in self._paths) or _MADE

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Each as (1, 3, S, S) float32, normalised.

        Raises:
            BrokenImageError: one cannot be read.
        """
        for pixels in map(read_rgb, self._paths) if self._paths else _made_up(self._preprocessing.image_size):
            yield prepare(pixels, self._preprocessing)


def _made_up(side: int) -> Iterator[torch.Tensor]:
    """(3, side, side) uint8 of each of `_MADE`."""
    yield torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    along = torch.arange(side) / side
    slope = along[:, None] * 80 + along[None, :] * 80
    disc = ((along[:, None] - 0.5) ** 2 + (along[None, :] - 0.45) ** 2 < 0.06) * torch.tensor([90, 60, 20])[
        :, None, None
    ]
    yield (slope + disc).to(torch.uint8)
