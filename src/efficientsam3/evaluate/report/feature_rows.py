"""The models' features of a few images, in common colours, for the report."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from efficientsam3.data.images import read_rgb
from efficientsam3.evaluate.masks.ground_truth import TrueImage
from efficientsam3.evaluate.masks.segmenters import Segmenter
from efficientsam3.evaluate.report.features import visible_cells
from efficientsam3.evaluate.report.figures import Array, FeatureColours, cosine_similarity


@dataclass(frozen=True)
class ModelFeatures:
    """One model's features of one image."""

    model: str
    colours: npt.NDArray[np.uint8]  # (h, w, 3), one pixel for each cell that shows the image
    cosine: float | None  # with the first model; None for the first, and where cells lie differently on the image


@dataclass(frozen=True)
class FeatureRow:
    """One image with every model's features."""

    image_id: str
    pixels: npt.NDArray[np.uint8]  # (H, W, 3)
    features: list[ModelFeatures]


def feature_rows(segmenters: Sequence[Segmenter], images: Sequence[TrueImage]) -> list[FeatureRow]:
    """Embed images once more, and colour their features by the first model's three largest directions.

    Raises:
        BrokenImageError: an image has been removed since it was measured.
    """
    pixels_of = [read_rgb(image.path) for image in images]
    maps = [
        [_visible(segmenter, image.image_id, pixels) for segmenter in segmenters]
        for image, pixels in zip(images, pixels_of, strict=True)
    ]
    colours = FeatureColours([of_image[0] for of_image in maps])
    rows = []
    for image, pixels, of_image in zip(images, pixels_of, maps, strict=True):
        features = [
            ModelFeatures(segmenter.name, _to_uint8(colours(array)), _cosine(of_image[0], array) if number else None)
            for number, (segmenter, array) in enumerate(zip(segmenters, of_image, strict=True))
        ]
        rows.append(FeatureRow(image.image_id, pixels.permute(1, 2, 0).contiguous().numpy(), features))
    return rows


def _visible(segmenter: Segmenter, image_id: str, pixels: torch.Tensor) -> Array:
    """(D, h, w): the cells that show the image rather than padding."""
    embedding, preprocessing = segmenter.embed(image_id, pixels)[0], segmenter.preprocessing
    content_size = preprocessing.content_size(pixels.shape[-2], pixels.shape[-1])
    return visible_cells(embedding, content_size, preprocessing.image_size)


def _cosine(first: Array, other: Array) -> float | None:
    return cosine_similarity(first, other) if first.shape == other.shape else None


def _to_uint8(colours: Array) -> npt.NDArray[np.uint8]:
    return (colours * 255).round().astype(np.uint8)
