"""LVIS's files, read as untrusted input: https://www.lvisdataset.org/dataset, "data format", versions 0.5 and 1.

They are COCO's with other images: those of COCO's train2017 and val2017 in any split, named by their address from
version 1 on. Not every image was searched for every category: it says which it surely has not, and of which some
objects may lack a mask.
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import ValidationError

from efficientsam3.data.annotations.coco import (
    MAX_INSTANCES_BYTES,
    CocoAnnotation,
    CocoCategory,
    CocoImage,
    ImageInstances,
    Record,
    Side,
    first_error,
)
from efficientsam3.data.annotations.sa1b import BrokenAnnotationError, UnreadableAnnotationError
from efficientsam3.runtime.files import read_bytes


class _Image(Record):
    id: int
    file_name: str | None = None  # version 0.5: val2014 or the like in front of the number
    coco_url: str | None = None
    width: Side
    height: Side
    neg_category_ids: list[int]
    not_exhaustive_category_ids: list[int]


class _Annotation(CocoAnnotation):
    iscrowd: Literal[0, 1] = 0  # LVIS has no crowds


class _File(Record):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[CocoCategory]


@dataclass(frozen=True)
class LvisImage:
    """What a file says about one image."""

    instances: ImageInstances
    folder: str | None  # COCO's folder that it is in, such as `train2017`; None where the file does not say
    absent: tuple[str, ...]  # phrases of which it surely has no object
    incomplete: frozenset[str]  # phrases of which not every object has a mask


class Lvis:
    """A file whose structure is right and whose ids fit together."""

    def __init__(self, path: Path) -> None:
        """Read a file.

        Raises:
            BrokenAnnotationError: it cannot be read, is not in LVIS's format, or its ids do not fit together.
        """
        try:
            file = _File.model_validate_json(read_bytes(path, MAX_INSTANCES_BYTES))
        except OSError as error:
            raise UnreadableAnnotationError(
                f"LVIS file {path} cannot be read ({error.strerror}): replace it."
            ) from error
        except ValidationError as error:
            raise _broken(path, first_error(error, _Image, _File, _Annotation)) from error
        self.categories = {category.id: phrase_of(category.name) for category in file.categories}
        masks: dict[int, list[tuple[int, CocoAnnotation]]] = {image.id: [] for image in file.images}
        for number, entry in enumerate(file.annotations):
            if entry.image_id not in masks or entry.category_id not in self.categories:
                which = "image" if entry.image_id not in masks else "category"
                raise _broken(path, f"annotations.{number}: no {which} has its {which}_id")
            masks[entry.image_id].append((number, entry))
        if len(masks) < len(file.images) or len(self.categories) < len(file.categories):
            raise _broken(path, "two images or categories have one id")
        self.images = [self._image(path, image, tuple(masks[image.id])) for image in file.images]
        names = {image.instances.image.file_name for image in self.images}
        if len(names) < len(self.images):
            raise _broken(path, "two images have one file name")

    def _image(self, path: Path, image: _Image, masks: tuple[tuple[int, CocoAnnotation], ...]) -> LvisImage:
        place = PurePosixPath(image.file_name or image.coco_url or "")
        if not {*image.neg_category_ids, *image.not_exhaustive_category_ids} <= self.categories.keys():
            raise _broken(path, f"image {image.id} names a category whose id there is not")
        try:
            record = CocoImage(id=image.id, file_name=place.name, width=image.width, height=image.height)
        except ValidationError as error:
            raise _broken(path, f"image {image.id}: {first_error(error)}") from error
        folder = place.parent.name if image.coco_url and not image.file_name else None
        if folder is not None and not re.fullmatch(r"\w+", folder):
            raise _broken(path, f"image {image.id}: coco_url names no folder of COCO")
        incomplete = frozenset(self.categories[number] for number in image.not_exhaustive_category_ids)
        return LvisImage(
            ImageInstances(path, record, masks),
            folder,
            tuple(self.categories[number] for number in image.neg_category_ids),
            incomplete,
        )


def phrase_of(name: str) -> str:
    """A category's name as words: `bow_(weapon)` to `bow`, `alarm_clock` to `alarm clock`."""
    words = re.sub(r"_?\([^)]*\)", "", name).replace("_", " ").strip()
    return words or name


def _broken(path: Path, what: str) -> BrokenAnnotationError:
    return BrokenAnnotationError(f"LVIS file {path} is not in LVIS's format ({what}): replace it.")
