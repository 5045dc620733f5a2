"""A student's features beside the stored ones of its teacher, on the pictures that both have seen."""

import logging
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch

from efficientsam3.data.images import read_rgb
from efficientsam3.data.listing import ImageListing
from efficientsam3.data.loader import ImageSample, read_sample
from efficientsam3.data.preprocess import build_valid_mask, normalise
from efficientsam3.evaluate.report.figures import Array, FeaturePair
from efficientsam3.models.student import Student
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.store.reader import EmbeddingStore

logger = logging.getLogger(LOGGER_NAME)


def feature_pairs(student: Student, store: EmbeddingStore, listing: ImageListing, count: int) -> list[FeaturePair]:
    """Teacher's and student's features of the first `count` pictures of a listing that the store has.

    Pictures are augmented as they were for the teacher; those that cannot be read are passed over.

    Raises:
        UserError: the student is for another embedding than the store's, or none of the pictures is in it.
    """
    manifest, architecture = store.manifest, student.architecture
    wanted = (manifest.embed_dim, manifest.embed_size, manifest.preprocessing.image_size)
    found = (architecture.embed_dim, architecture.embed_size, architecture.image_size)
    if wanted != found:
        raise UserError(
            f"The student is for channels, cells a side and pixels {found}, the store {store.directory} holds {wanted}:"
            " give the store that it was trained on."
        )
    pairs = list(islice(_pairs(student, store, listing), count))
    if not pairs:
        raise UserError(f"{store.directory} has none of the pictures in {listing.root}: give the store of these.")
    return pairs


def _pairs(student: Student, store: EmbeddingStore, listing: ImageListing) -> Iterator[FeaturePair]:
    rows = store.rows(listing.ids)
    for index in np.flatnonzero(rows >= 0):
        try:
            yield _pair(student, store, listing, int(index), int(rows[index]))
        except UserError as error:  # the picture's, or its record's
            logger.warning("%s", error)


@torch.inference_mode()
def _pair(student: Student, store: EmbeddingStore, listing: ImageListing, index: int, row: int) -> FeaturePair:
    device = next(student.parameters()).device
    seeds, teacher = store.decode(store.read(row)[None])
    preprocessing = store.manifest.preprocessing
    sample = read_sample(listing, index, int(seeds[0]), preprocessing, store.manifest.augmentation)
    pixels = normalise(sample.pixels[None], torch.tensor([sample.content_size]), preprocessing)
    features = student(pixels.to(device))
    height, width = read_rgb(listing.path(index)).shape[1:]
    return FeaturePair(
        photograph=_content(sample),
        size=(height, width),
        teacher=visible_cells(teacher[0], sample.content_size, preprocessing.image_size),
        student=visible_cells(features[0], sample.content_size, preprocessing.image_size),
    )


def visible_cells(embedding: torch.Tensor, content_size: tuple[int, int], image_size: int) -> Array:
    """The cells of an embedding that show the picture rather than padding.

    Args:
        embedding: (D, G, G) float, on any device.
        content_size: height and width in pixels that the picture covers in the input.
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
