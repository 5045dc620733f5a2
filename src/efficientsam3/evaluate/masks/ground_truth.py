"""Ground truth to measure with, image by image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from efficientsam3.data.annotations.coco import InstanceMask
from efficientsam3.data.annotations.rle import Rle
from efficientsam3.data.annotations.sa1b import BrokenAnnotationError, CompressedMask
from efficientsam3.data.augment import augmentation_seed
from efficientsam3.data.layouts import DATASETS
from efficientsam3.data.layouts.annotation_files import open_annotation_file
from efficientsam3.data.layouts.layout import AnnotatedImage, AnnotatedImages
from efficientsam3.data.objects import usable_masks
from efficientsam3.data.split import Split
from efficientsam3.evaluate.masks.objects import TrueObject
from efficientsam3.runtime.errors import UserError


@dataclass(frozen=True)
class TrueImage:
    """One image with its objects."""

    image_id: str
    path: Path
    size: tuple[int, int]  # height, width in pixels, as the annotation says
    objects: tuple[TrueObject, ...]
    source: Path  # the file of its annotation
    phrases: tuple["TruePhrase", ...] = ()  # that its annotation asks
    absent: tuple[str, ...] = ()  # phrases that are surely not in it, and could be asked


@dataclass(frozen=True)
class TruePhrase:
    """A phrase with the masks of all its objects in an image."""

    text: str
    masks: tuple[Rle, ...] = ()
    others: tuple[tuple[Rle, ...], ...] = ()  # the same by further annotators
    exhaustive: bool = True  # whether each object has a mask of its own


@dataclass(frozen=True)
class Selection:
    """Which objects are measured. The same seed chooses the same, whatever is measured."""

    min_area: int = 0  # pixels of the mask
    max_images: int = 0  # 0: all
    max_objects: int = 0  # of each image; 0: all
    seed: int = 0
    negatives: int = 0  # phrases that are not in the image, of those that the annotation does not ask itself


class GroundTruth:
    """The annotated images of a dataset's split."""

    def __init__(self, images: AnnotatedImages) -> None:
        """Take them as their layout reads them."""
        self._images = images
        self.has_categories = bool(images.categories)  # whether the objects have names
        self.left_out = images.left_out

    @property
    def ids(self) -> npt.NDArray[np.bytes_]:
        """(N,) image ids, as in a listing."""
        return self._images.ids

    def load(self, index: int) -> TrueImage:
        """One image, without COCO's crowd regions and empty masks.

        Raises:
            BrokenAnnotationError: its annotation cannot be read, or a mask is malformed.
        """
        return _true_image(self._images.read(index), self._images.categories)


def open_ground_truth(
    data: Path, split: Split = "val", images: Path | None = None, annotators: Sequence[Path] = ()
) -> GroundTruth:
    """Open an annotated dataset of any layout, or a file of COCO, LVIS or SA-Co.

    Args:
        data: the folder or `.json` file.
        split: which part of a folder.
        images: where the images of a file are; by default where COCO has them, in `val2017/` next to the folder of
            `instances_val2017.json`.
        annotators: files of the same SA-Co pairs by other annotators.

    Raises:
        UserError: it is neither, or has no images.
    """
    is_file = data.suffix == ".json"
    if annotators and not is_file:
        raise UserError(f"--annotators has no effect: {data} is not a file of SA-Co, leave it out.")
    found = open_annotation_file(data, images, annotators) if is_file else _annotated(data, split)
    if found is None:
        raise UserError(
            f"{data} has no annotations of its split {split} in the layout of {', '.join(DATASETS)}: give an annotated "
            "dataset, or a file of COCO, LVIS or SA-Co with --images."
        )
    if len(found.ids) == 0:
        raise UserError(f"{data} has no images in its split {split}: give another --split or dataset.")
    return GroundTruth(found)


def _annotated(data: Path, split: Split) -> AnnotatedImages | None:
    if not data.is_dir():
        raise UserError(f"{data} is not a folder: give an annotated dataset, or a COCO instances file.")
    return next(filter(None, (layout.annotated(data, split) for layout in DATASETS.values())), None)


def choose_images(count: int, selection: Selection) -> npt.NDArray[np.intp]:
    """Indices, ascending, of the images that are measured, out of `count`."""
    everything = np.arange(count)
    if not 0 < selection.max_images < count:
        return everything
    return np.sort(np.random.default_rng(selection.seed).permutation(count)[: selection.max_images])


def choose_objects(image: TrueImage, selection: Selection) -> tuple[TrueObject, ...]:
    """The objects of an image that are measured, in the file's order."""
    large = [thing for thing in image.objects if thing.rle.area >= selection.min_area]
    if not 0 < selection.max_objects < len(large):
        return tuple(large)
    # By the image's name, so that an image's objects do not depend on which other images there are.
    generator = np.random.default_rng(augmentation_seed(selection.seed, image.image_id))
    chosen = generator.permutation(len(large))[: selection.max_objects]
    return tuple(large[index] for index in np.sort(chosen))


def _true_image(image: AnnotatedImage, categories: Mapping[int, str]) -> TrueImage:
    annotation, image_id, source = image.annotation, image.image_id, image.source
    size = (annotation.image.height, annotation.image.width)
    objects = []
    for number, mask in usable_masks(image):
        category = categories[mask.category_id] if isinstance(mask, InstanceMask) else None
        objects.append(TrueObject(number, mask.rle, next(iter(mask.point_coords), None), category))
    return TrueImage(image_id, image.path, size, tuple(objects), source, _phrases(image, objects), image.absent)


def _phrases(image: AnnotatedImage, objects: Sequence[TrueObject]) -> tuple[TruePhrase, ...]:
    """Those of the objects' categories and those that the annotation asks beside them."""
    masks: dict[str, list[Rle]] = {text: [] for text in image.negatives}
    for thing in objects:
        if thing.category is not None:
            masks.setdefault(thing.category, []).append(thing.rle)
    others = {
        text: tuple(tuple(_parse(image, mask) for mask in by_one) for by_one in by_all)
        for text, by_all in image.others.items()
    }
    return tuple(
        TruePhrase(text, tuple(rles), others.get(text, ()), exhaustive=text not in image.incomplete)
        for text, rles in masks.items()
    )


def _parse(image: AnnotatedImage, mask: CompressedMask) -> Rle:
    try:
        return Rle(*mask.size, mask.counts)
    except ValueError as error:
        raise BrokenAnnotationError(
            f"Another annotator's mask of image {image.image_id} is broken ({error}): replace the file."
        ) from error
