"""A student's features and its teacher's, of images that both have seen."""

import logging
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch

from efficientsam3.data.images import read_size
from efficientsam3.data.loader import ImageDataset, ImageSample
from efficientsam3.data.preprocess import build_valid_mask, normalise
from efficientsam3.evaluate.report.figures import Array, FeaturePair
from efficientsam3.models.student import Student
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.train.targets import Targets

logger = logging.getLogger(LOGGER_NAME)


def feature_pairs(student: Student, targets: Targets, images: ImageDataset, count: int) -> list[FeaturePair]:
    """Teacher's and student's features of the first `count` images that can be read.

    Images are augmented as they are in training; those that cannot be read are skipped with a warning.

    Raises:
        UserError: the student is for another embedding than the targets', or no image can be read.
    """
    manifest, architecture = targets.manifest, student.architecture
    wanted = (manifest.embed_dim, manifest.embed_size, manifest.preprocessing.image_size)
    found = (architecture.embed_dim, architecture.embed_size, architecture.image_size)
    if wanted != found:
        raise UserError(
            f"The student is for channels, cells a side and pixels {found}, the teacher's embeddings have {wanted}: "
            "give the store that it was trained on."
        )
    pairs = list(islice(_pairs(student, targets, images), count))
    if not pairs:
        raise UserError(f"No image in {images.listing.root} has features to show: give the store of these images.")
    return pairs


def _pairs(student: Student, targets: Targets, images: ImageDataset) -> Iterator[FeaturePair]:
    for item in range(len(images)):
        sample = images[item]
        try:
            if isinstance(sample, ImageSample):
                yield _pair(student, targets, sample, read_size(images.listing.path(images.index(item))))
                continue
            assert sample is not None, item
            raise sample
        except UserError as error:  # the image's, or its record's
            logger.warning("%s", error)


@torch.inference_mode()
def _pair(student: Student, targets: Targets, sample: ImageSample, size: tuple[int, int]) -> FeaturePair:
    device = next(student.parameters()).device
    preprocessing = targets.manifest.preprocessing
    pixels = normalise(sample.pixels[None], torch.tensor([sample.content_size]), preprocessing).to(device)
    teacher = targets.embed_one(sample.row, pixels)
    return FeaturePair(
        image=_content(sample),
        size=size,
        teacher=visible_cells(teacher[0], sample.content_size, preprocessing.image_size),
        student=visible_cells(student(pixels)[0], sample.content_size, preprocessing.image_size),
    )


def visible_cells(embedding: torch.Tensor, content_size: tuple[int, int], image_size: int) -> Array:
    """The cells of an embedding that show the image rather than padding.

    Args:
        embedding: (D, G, G) float, on any device.
        content_size: height and width in pixels that the image covers in the input.
        image_size: side of the input in pixels.

    Returns:
        (D, h, w) float32.
    """
    valid = build_valid_mask(torch.tensor([content_size]), image_size, embedding.shape[-1])[0]
    features: Array = embedding[:, : int(valid[:, 0].sum()), : int(valid[0].sum())].float().cpu().numpy()
    return features


def _content(sample: ImageSample) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    height, width = sample.content_size
    return sample.pixels[:, :height, :width].permute(1, 2, 0).numpy()  # [h, w, 3]
