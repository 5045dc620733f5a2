"""Preprocessing: from an RGB image to the encoder's input, and which embedding cells show the image.

Two shapes exist. SAM3 squashes every image to a square (`square`); SAM keeps the aspect ratio and pads on the right
and at the bottom (`pad`). Pixels stay uint8 until `normalise` runs on the device. Only the functions on tensors import
PyTorch, so that a model's preprocessing can be read without it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import torch

Resize = Literal["square", "pad"]
PerChannel = tuple[float, float, float]
LARGEST_IMAGE = 1 << 13  # pixels a side of an encoder's input, 0.8 GB of numbers
_Positive = Annotated[float, Field(gt=0)]

IMAGENET_MEAN: PerChannel = (123.675 / 255, 116.28 / 255, 103.53 / 255)
IMAGENET_STD: PerChannel = (58.395 / 255, 57.12 / 255, 57.375 / 255)
HALF: PerChannel = (0.5, 0.5, 0.5)


class Preprocessing(BaseModel):
    """How an image becomes an encoder input. Belongs to the teacher; the store and the merged model carry it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    image_size: int = Field(1008, gt=0, le=LARGEST_IMAGE, description="side of the square input in pixels")
    resize: Resize = Field("square", description="square: squash; pad: keep the aspect ratio, pad right and bottom")
    mean: PerChannel = Field(HALF, description="per channel, of pixels in [0, 1]")
    std: tuple[_Positive, _Positive, _Positive] = Field(HALF, description="per channel, of pixels in [0, 1]")

    def content_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels that an image of `height` x `width` covers in the input (its top left corner)."""
        if self.resize == "square":
            return self.image_size, self.image_size
        scale = self.image_size / max(height, width)
        return max(1, math.floor(height * scale + 0.5)), max(1, math.floor(width * scale + 0.5))


SAM3_PREPROCESSING = Preprocessing()
SAM_PREPROCESSING = Preprocessing(image_size=1024, resize="pad", mean=IMAGENET_MEAN, std=IMAGENET_STD)


def sam3_preprocessing(image_size: int) -> Preprocessing:
    """SAM3's preprocessing for an encoder of another input size."""
    return SAM3_PREPROCESSING.model_copy(update={"image_size": image_size})


def sam_preprocessing(image_size: int) -> Preprocessing:
    """SAM's preprocessing for an encoder of another input size."""
    return SAM_PREPROCESSING.model_copy(update={"image_size": image_size})


def prepare(image: torch.Tensor, preprocessing: Preprocessing, device: torch.device | str = "cpu") -> torch.Tensor:
    """One image (3, H, W) uint8 RGB as an encoder's input (1, 3, S, S) float32 on `device`: resized and normalised."""
    import torch

    resized, content_size = resize_image(image, preprocessing)
    sizes = torch.tensor([content_size], device=device)
    return normalise(resized[None].to(device), sizes, preprocessing)


def resize_image(image: torch.Tensor, preprocessing: Preprocessing) -> tuple[torch.Tensor, tuple[int, int]]:
    """Resize one image to the encoder's input, still uint8.

    Antialiased bilinear on uint8, as Meta's and transformers' SAM3 processors do it.

    Args:
        image: (3, H, W) uint8 RGB in [0, 255].
        preprocessing: the target.

    Returns:
        (3, S, S) uint8, and the (height, width) of its top left part that shows the image.
    """
    import torch
    from torchvision.transforms.v2 import functional as tv

    height, width = preprocessing.content_size(image.shape[-2], image.shape[-1])
    resized = tv.resize(image, [height, width], antialias=True)
    side = preprocessing.image_size
    if (height, width) != (side, side):
        resized = torch.nn.functional.pad(resized, (0, side - width, 0, side - height))
    return resized, (height, width)


def build_valid_mask(content_sizes: torch.Tensor, image_size: int, grid_size: int) -> torch.Tensor:
    """Which cells of a `grid_size` x `grid_size` grid over the input show the image rather than padding.

    A cell counts if its centre lies in the image; the first row and column always count, so every image has a cell.

    Args:
        content_sizes: (B, 2) height and width in pixels that each image covers, see `resize_image`.
        image_size: side of the input in pixels.
        grid_size: cells per side.

    Returns:
        (B, G, G) bool.
    """
    import torch

    centres = (torch.arange(grid_size, device=content_sizes.device) + 0.5) * (image_size / grid_size)
    inside = centres < content_sizes[:, :, None]  # [B, 2, G]
    inside[:, :, 0] = True
    return inside[:, 0, :, None] & inside[:, 1, None, :]  # [B, G, G]


def normalise(pixels: torch.Tensor, content_sizes: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Scale uint8 pixels to normalised float32, with zeros where the input is padding.

    Args:
        pixels: (B, 3, S, S) uint8 in [0, 255].
        content_sizes: (B, 2) as returned by `resize_image`.
        preprocessing: gives mean and standard deviation.

    Returns:
        (B, 3, S, S) float32: `(pixels / 255 - mean) / std`.
    """
    mean, std = _moments(preprocessing.mean, preprocessing.std, pixels.device)
    normalised = (pixels.float() / 255 - mean) / std
    if preprocessing.resize == "pad":
        side = preprocessing.image_size
        normalised = normalised * build_valid_mask(content_sizes, side, side)[:, None]
    return normalised


def halve(pixels: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, S, S) float of half the size, each pixel the mean of four; S is even."""
    from torch.nn.functional import avg_pool2d

    return avg_pool2d(pixels, 2)


@lru_cache
def _moments(mean: PerChannel, std: PerChannel, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation as (1, 3, 1, 1) float32, made once: copying them to a GPU waits for all its work."""
    import torch

    with torch.inference_mode(False):  # what is made in it cannot be used in training
        return torch.tensor(mean, device=device).view(1, 3, 1, 1), torch.tensor(std, device=device).view(1, 3, 1, 1)
