"""Ground truth to measure with: SA-1B folders and COCO's instances files, image by image."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from efficientsam3.data.annotations.coco import InstanceMask, Instances, instances_path, load_consistent_instances
from efficientsam3.data.annotations.sa1b import BrokenAnnotationError, ImageAnnotation, read_annotation
from efficientsam3.data.augment import augmentation_seed
from efficientsam3.data.listing import ImageListing, list_images
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


@dataclass(frozen=True)
class Selection:
    """Which objects are measured. The same seed chooses the same, whatever is measured."""

    min_area: int = 0  # pixels of the mask
    max_images: int = 0  # 0: all
    max_objects: int = 0  # of each image; 0: all
    seed: int = 0


class GroundTruth(Protocol):
    """Annotated images."""

    @property
    def ids(self) -> npt.NDArray[np.bytes_]:
        """(N,) image ids, as in a listing."""
        ...

    def load(self, index: int) -> TrueImage:
        """One image, without COCO's crowd regions and empty masks.

        Raises:
            BrokenAnnotationError: its annotation cannot be read, or a mask is malformed.
        """
        ...

    @property
    def has_categories(self) -> bool:
        """Whether the objects have names."""
        ...


class Sa1bTruth:
    """`images/{split}/sa_N.jpg` with `annotations/{split}/sa_N.json`."""

    has_categories = False

    def __init__(self, listing: ImageListing, annotations: Path) -> None:
        """Pair a listing with a folder of annotation files."""
        self._listing, self._annotations = listing, annotations

    @property
    def ids(self) -> npt.NDArray[np.bytes_]:
        """See `GroundTruth`."""
        return self._listing.ids

    def load(self, index: int) -> TrueImage:
        """See `GroundTruth`."""
        image_id = self._listing.id(index)
        path = self._annotations / f"{image_id}.json"
        return _true_image(image_id, self._listing.path(index), read_annotation(path), path, {})


class CocoTruth:
    """An instances file with a folder of its images. An image's id is its file name without the suffix."""

    has_categories = True

    def __init__(self, path: Path, images: Path) -> None:
        """Read the file's structure.

        Raises:
            BrokenAnnotationError: the file is not in COCO's format, or its ids do not fit together.
        """
        self._path, self._images = path, images
        self._instances: Instances = load_consistent_instances(path)

    @property
    def ids(self) -> npt.NDArray[np.bytes_]:
        """See `GroundTruth`."""
        return np.array([os.fsencode(Path(entry.image.file_name).stem) for entry in self._instances.images], dtype="S")

    def load(self, index: int) -> TrueImage:
        """See `GroundTruth`."""
        entry = self._instances.images[index]
        path = self._images / entry.image.file_name
        return _true_image(path.stem, path, entry.annotation(), self._path, self._instances.categories)


def open_ground_truth(data: Path, split: Split = "val", images: Path | None = None) -> GroundTruth:
    """Open an SA-1B folder, a COCO folder, or an instances file.

    Args:
        data: the folder or `.json` file.
        split: which part of a folder.
        images: where the images of an instances file are; by default where COCO has them, in `val2017/` beside the
            folder of `instances_val2017.json`.

    Raises:
        UserError: `data` is none of these, or has no images.
    """
    if data.suffix == ".json":
        truth: GroundTruth = CocoTruth(data, images or _coco_images(data))
    elif (data / "annotations" / split).is_dir():
        truth = Sa1bTruth(list_images(data, split), data / "annotations" / split)
    else:
        root = list_images(data, split, "coco").root
        if not instances_path(data, root).is_file():
            raise UserError(
                f"{data} has neither annotations/{split}/ as SA-1B nor {instances_path(data, root).name} as COCO: "
                "give an annotated dataset, or a COCO instances file with --images."
            )
        truth = CocoTruth(instances_path(data, root), root)
    if len(truth.ids) == 0:
        raise UserError(f"{data} has no images in its split {split}: give another --split or dataset.")
    return truth


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


def _coco_images(path: Path) -> Path:
    name, root = path.stem.removeprefix("instances_"), path.parent.parent
    for folder in (root / name, root / "images" / name):
        if folder.is_dir():
            return folder
    raise UserError(f"The images of {path} are not in {root / name}: say where with --images.")


def _true_image(
    image_id: str, path: Path, annotation: ImageAnnotation, source: Path, categories: dict[int, str]
) -> TrueImage:
    size = (annotation.image.height, annotation.image.width)
    objects = []
    for number, mask in enumerate(annotation.annotations):
        if isinstance(mask, InstanceMask) and mask.iscrowd:
            continue
        try:
            rle = mask.rle
        except ValueError as error:
            raise BrokenAnnotationError(
                f"Annotation {source} has a broken mask {number} of image {image_id} ({error}): replace it."
            ) from error
        if (rle.height, rle.width) != size:
            raise BrokenAnnotationError(
                f"Annotation {source} has a mask {number} of {rle.height} x {rle.width} for image {image_id} of "
                f"{size[0]} x {size[1]} (height x width): replace it."
            )
        if rle.area == 0:
            continue
        category = categories[mask.category_id] if isinstance(mask, InstanceMask) else None
        objects.append(TrueObject(number, rle, next(iter(mask.point_coords), None), category))
    return TrueImage(image_id, path, size, tuple(objects))
