"""Seeded augmentation: the seed stored with an embedding makes teacher and student see the same image."""

import hashlib

import torch
from pydantic import BaseModel, ConfigDict, Field
from torchvision.transforms.v2 import functional as tv


class Augmentation(BaseModel):
    """The random changes that a seed controls. The store's manifest records them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hflip: float = Field(0.0, ge=0, le=1, description="probability of a horizontal flip")
    color_jitter: float = Field(
        0.0, ge=0, lt=1, description="largest relative change of brightness, contrast, saturation"
    )

    @property
    def is_off(self) -> bool:
        """Whether every image stays unchanged, whatever its seed."""
        return self.hflip == self.color_jitter == 0


def augmentation_seed(seed: int, image_id: str) -> int:
    """The seed of one image, in [0, 2**31): a function of the run's SEED and the image's id alone."""
    digest = hashlib.blake2b(f"{seed}/{image_id}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") & 0x7FFFFFFF


def flips(seed: int, augmentation: Augmentation) -> bool:
    """Whether `augment` mirrors an image of this seed left to right."""
    return _draw(seed)[0] < augmentation.hflip


def _draw(seed: int) -> list[float]:
    # All numbers are drawn even when switched off, so that one setting does not shift the draws of another.
    drawn: list[float] = torch.rand(4, generator=torch.Generator().manual_seed(seed)).tolist()
    return drawn


def augment(image: torch.Tensor, seed: int, augmentation: Augmentation) -> torch.Tensor:
    """Apply the changes that `seed` selects.

    Args:
        image: (3, H, W) uint8 RGB.
        seed: as from `augmentation_seed`.
        augmentation: probabilities and strengths.

    Returns:
        (3, H, W) uint8.
    """
    _, brightness, contrast, saturation = _draw(seed)
    if flips(seed, augmentation):
        image = tv.horizontal_flip(image)
    strength = augmentation.color_jitter
    if strength > 0:
        image = tv.adjust_brightness(image, 1 + strength * (2 * brightness - 1))
        image = tv.adjust_contrast(image, 1 + strength * (2 * contrast - 1))
        image = tv.adjust_saturation(image, 1 + strength * (2 * saturation - 1))
    return image
