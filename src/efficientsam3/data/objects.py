"""The annotated objects of an image as prompts need them: boxes, and points on them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from efficientsam3.data.annotations.coco import InstanceMask
from efficientsam3.data.annotations.sa1b import BrokenAnnotationError, MaskAnnotation, NoAnnotationError
from efficientsam3.data.augment import augmentation_seed

if TYPE_CHECKING:
    from efficientsam3.data.layouts.layout import AnnotatedImage, AnnotatedImages

POINTS = 8  # of each object
Floats = npt.NDArray[np.float32]


def usable_masks(image: "AnnotatedImage") -> Iterator[tuple[int, MaskAnnotation]]:
    """The masks that can be asked for, with their numbers: without COCO's crowd regions and empty ones.

    Raises:
        BrokenAnnotationError: a mask is malformed, or of another size than its image.
    """
    annotation, source = image.annotation, image.source
    size = (annotation.image.height, annotation.image.width)
    for number, mask in enumerate(annotation.annotations):
        if isinstance(mask, InstanceMask) and mask.iscrowd:
            continue
        try:
            rle = mask.rle
        except ValueError as error:
            raise BrokenAnnotationError(
                f"Annotation {source} has a broken mask {number} of image {image.image_id} ({error}): replace it."
            ) from error
        if (rle.height, rle.width) != size:
            raise BrokenAnnotationError(
                f"Annotation {source} has a mask {number} of {rle.height} x {rle.width} for image {image.image_id} of "
                f"{size[0]} x {size[1]} (height x width): replace it."
            )
        if rle.area:
            yield number, mask


def wrong_size(image: Path, size: tuple[int, ...], annotated: tuple[int, int]) -> BrokenAnnotationError:
    """The error for an annotation of another size (height, width) than its image."""
    return BrokenAnnotationError(
        f"Image {image} is {size[0]} x {size[1]}, its annotation is for {annotated[0]} x {annotated[1]} "
        "(height x width): replace one of them."
    )


@dataclass(frozen=True)
class ImageObjects:
    """The objects of one image; arrays, which go from one process to another at little cost."""

    size: tuple[int, int]  # height, width in pixels of what the coordinates are in
    boxes: Floats  # (K, 4) x0, y0, x1, y1 edges
    points: Floats  # (K, POINTS, 2) x, y of pixels of each object
    nouns: tuple[str, ...] = ()  # names of their categories, each once; empty where objects have none

    def placed(self, content: tuple[int, int], flipped: bool) -> "ImageObjects":
        """The same objects where the image covers `content` (height, width) pixels, perhaps mirrored left to right."""
        boxes, points = self.boxes.copy(), self.points.copy()
        if flipped:
            boxes[:, 0::2] = self.size[1] - boxes[:, 2::-2]
            points[..., 0] = self.size[1] - 1 - points[..., 0]
        scale = np.array([content[1] / self.size[1], content[0] / self.size[0]], dtype=np.float32)
        return replace(self, size=content, boxes=boxes * np.tile(scale, 2), points=points * scale)


class ObjectReader:
    """The objects of a listing's images, by their places there."""

    def __init__(self, images: "AnnotatedImages", ids: npt.NDArray[np.bytes_]) -> None:
        """Find the annotations of the ids (N,)."""
        self._images = images
        self.nouns = frozenset(images.categories.values())  # names of all categories
        annotated = images.ids
        order = np.argsort(annotated)
        places = order[np.searchsorted(annotated, ids, sorter=order).clip(max=len(order) - 1)] if len(order) else order
        self._places = np.where(annotated[places] == ids, places, -1) if len(order) else np.full(len(ids), -1)

    def __call__(self, index: int) -> ImageObjects | None:
        """The objects of one image; None where it has no annotation, or none of a usable object.

        Raises:
            BrokenAnnotationError: its annotation cannot be read, or a mask is malformed.
        """
        place = int(self._places[index])
        if place < 0:
            return None
        try:
            image = self._images.read(place)
        except NoAnnotationError:
            return None
        usable = [mask for _, mask in usable_masks(image)]
        if not usable:
            return None
        masks = [mask.rle for mask in usable]
        generator = np.random.default_rng(augmentation_seed(0, image.image_id))
        boxes, points = [], []
        for mask, share in zip(masks, generator.random((len(masks), POINTS)), strict=True):
            box = mask.box()
            assert box is not None
            boxes.append((box.xmin, box.ymin, box.xmax + 1, box.ymax + 1))
            points.append(mask.pixels((share * mask.area).astype(np.int64)))
        size = (image.annotation.image.height, image.annotation.image.width)
        names = {self._images.categories[mask.category_id] for mask in usable if isinstance(mask, InstanceMask)}
        return ImageObjects(size, np.array(boxes, np.float32), np.array(points, np.float32), tuple(sorted(names)))
