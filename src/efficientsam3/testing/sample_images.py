"""A small dataset in SA-1B's format, made of the sample images that scikit-image and scikit-learn ship."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import skimage.data
from PIL import Image
from skimage.segmentation import felzenszwalb
from sklearn.datasets import load_sample_image

from efficientsam3.data.annotations.encode import encode_rle
from efficientsam3.runtime.files import atomic_path, write_text

Pixels = npt.NDArray[np.uint8]  # (H, W, 3) RGB
Labels = npt.NDArray[np.integer[Any]]  # (H, W), one number per segment

_SOURCES: dict[str, tuple[Callable[[], Pixels], ...]] = {
    "train": (
        skimage.data.astronaut,
        skimage.data.chelsea,
        skimage.data.rocket,
        lambda: skimage.data.stereo_motorcycle()[0],
        lambda: load_sample_image("china.jpg"),
    ),
    # Other images than those trained on, so that a validation loss means something.
    "val": (skimage.data.coffee, lambda: load_sample_image("flower.jpg")),
}
_SMALLEST_AREA = 200  # pixels of a mask
_CROP_SIDES = (0.5, 0.9)  # of the image's height and width


def write_sample_images(directory: Path, train: int = 32, val: int = 8, seed: int = 0) -> None:
    """Write random crops as `images/{train,val}/sa_N.jpg` and their segments as `annotations/{train,val}/sa_N.json`.

    The same arguments give the same crops. Masks are COCO RLE of a graph-based segmentation; `predicted_iou` and
    `stability_score` are placeholders. N counts from 1 through both splits.

    Raises:
        UserError: the folder cannot be written to.
    """
    generator = np.random.default_rng(seed)
    image_id = 0
    for split, count in (("train", train), ("val", val)):
        sources = [(image, _segments(image)) for image in (load() for load in _SOURCES[split][:count])]
        for number in range(count):
            image_id += 1
            image, labels = sources[number % len(sources)]
            rows, columns = (_random_span(size, generator) for size in labels.shape)
            name = Path(split) / f"sa_{image_id}"
            _write_jpeg(directory / "images" / name.with_suffix(".jpg"), image[rows, columns])
            annotation = sa1b_annotation(image_id, labels[rows, columns])
            write_text(directory / "annotations" / name.with_suffix(".json"), json.dumps(annotation))


def sa1b_annotation(image_id: int, labels: Labels) -> dict[str, Any]:
    """SA-1B's record of one image: https://ai.meta.com/datasets/segment-anything-downloads/, "dataset format"."""
    height, width = labels.shape
    masks = [mask for mask in _masks(labels) if mask.sum() >= _SMALLEST_AREA]
    return {
        "image": {"image_id": image_id, "width": width, "height": height, "file_name": f"sa_{image_id}.jpg"},
        "annotations": [_mask_record(1000 * image_id + number, mask) for number, mask in enumerate(masks)],
    }


def _mask_record(annotation_id: int, mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    rows, columns = np.nonzero(mask)
    left, top, right, bottom = (float(value) for value in (columns.min(), rows.min(), columns.max(), rows.max()))
    middle = len(rows) // 2  # of the mask's own pixels, so it lies inside
    return {
        "id": annotation_id,
        "segmentation": encode_rle(mask),
        "area": int(mask.sum()),
        # SA-1B's widths and heights are one less than COCO's.
        "bbox": [left, top, right - left, bottom - top],
        "point_coords": [[float(columns[middle]), float(rows[middle])]],
        "crop_box": [0.0, 0.0, float(mask.shape[1]), float(mask.shape[0])],
        "predicted_iou": 1.0,
        "stability_score": 1.0,
    }


def _masks(labels: Labels) -> Iterator[npt.NDArray[np.bool_]]:
    return (labels == label for label in np.unique(labels))


def _segments(image: Pixels) -> Labels:
    labels: Labels = felzenszwalb(image, scale=300, sigma=1.0, min_size=2 * _SMALLEST_AREA)
    return labels


def _random_span(size: int, generator: np.random.Generator) -> slice:
    length = round(size * generator.uniform(*_CROP_SIDES))
    start = int(generator.integers(size - length + 1))
    return slice(start, start + length)


def _write_jpeg(path: Path, image: Pixels) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="JPEG", quality=95)
