"""`coco`: `{train,val}2017/`, or 2014, or without a year, at the top or below `images/`.

An image's id is its file's stem. An instances file `annotations/instances_{train,val}2017.json`, if there is one,
lists the images.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from efficientsam3.data.layouts.layout import AnnotatedImage, AnnotatedImages, Layout
from efficientsam3.data.split import SPLITS, Split
from efficientsam3.runtime.errors import UserError

if TYPE_CHECKING:
    from efficientsam3.data.annotations.coco import ImageInstances, Instances
    from efficientsam3.data.listing import ImageListing
    from efficientsam3.data.problems import Problem

_YEARS = ("2017", "2014")


class Coco(Layout):
    """COCO's folders, with instances files."""

    name = "coco"
    description = "train2017/ and val2017/ (or 2014), with annotations/instances_*.json"

    def recognises(self, folder: Path) -> bool:
        """See `Layout`; folders without a year are too common to count."""
        return any(found.name.endswith(_YEARS) for _, found in self._found(folder))

    def list_split(self, data_path: Path, split: Split) -> "ImageListing":
        """See `Layout`."""
        from efficientsam3.data.listing import ImageListing

        folder = self._folder(data_path, split)
        if folder.is_dir() and (instances := instances_path(data_path, folder)).exists():
            return ImageListing.of_instances(folder, instances)
        return ImageListing.of_folder(folder)

    def annotated(self, data_path: Path, split: Split) -> AnnotatedImages | None:
        """See `Layout`."""
        if not any(self._found(data_path)):
            return None
        folder = self._folder(data_path, split)
        path = instances_path(data_path, folder)
        return CocoImages(path, folder) if path.is_file() else None

    def has_annotations(self, data_path: Path, split: Split) -> bool:
        """See `Layout`."""
        return instances_path(data_path, Path(f"{split}{_YEARS[0]}")).is_file()

    def find_annotations(
        self, data_path: Path, split: Split, listing: "ImageListing", problems: "list[Problem]"
    ) -> "Callable[[int], ImageInstances | None]":
        """See `Layout`; all instances are read, which takes gigabytes for COCO's training images."""
        from efficientsam3.data.annotations.coco import load_instances
        from efficientsam3.data.problems import Kind, Problem

        path = instances_path(data_path, listing.root)
        if not len(listing) or not path.exists():
            return lambda index: None
        instances = load_instances(path)
        problems += [Problem(Kind.ID, path, problem) for problem in instances.id_problems]
        by_name = {image.image.file_name: image for image in instances.images}
        return lambda index: by_name.get(listing.path(index).name)

    def strays(self, data_path: Path, listings: "Mapping[Split, ImageListing]") -> "list[Problem]":
        """See `Layout`; images in the splits' folders that the instances file does not name."""
        from efficientsam3.data.listing import names_in
        from efficientsam3.data.problems import Kind, Problem

        problems = []
        for listing in listings.values():
            folder = listing.root
            names = sorted(names_in(folder)) if folder.is_dir() else []
            stems = np.array([os.path.splitext(name)[0] for name in names], dtype=np.bytes_)
            for row in np.flatnonzero(~np.isin(stems, listing.ids)):
                problems.append(Problem(Kind.UNNAMED, folder / os.fsdecode(names[row]), "so it is not used"))
        return problems

    def _folder(self, data_path: Path, split: Split) -> Path:
        found = dict(self._found(data_path))
        if not found:
            raise UserError(f"DATA_PATH {data_path} has neither train2017/ nor val2017/: {self.remedy}.")
        return found.get(split, data_path / f"{split}{_YEARS[0]}")

    @staticmethod
    def _found(data_path: Path) -> Iterator[tuple[Split, Path]]:
        """Each split's folders; the last one is the one to use."""
        for split in SPLITS:
            for place in (data_path, data_path / "images"):
                for year in (*_YEARS, ""):
                    if (folder := place / f"{split}{year}").is_dir():
                        yield split, folder


def instances_path(data_path: Path, folder: Path) -> Path:
    """Where COCO keeps the instances of the images in a folder such as `val2017/`."""
    return data_path / "annotations" / f"instances_{folder.name}.json"


class CocoImages:
    """An instances file with a folder of its images; see `AnnotatedImages`."""

    def __init__(self, path: Path, images: Path | None = None) -> None:
        """Read the file's structure.

        Args:
            path: the instances file.
            images: folder of its images; by default where COCO has them, such as `val2017/` next to the folder
                of `instances_val2017.json`.

        Raises:
            BrokenAnnotationError: the file is not in COCO's format, or two images have one id or file name.
            UserError: the images are not where COCO has them.
        """
        from efficientsam3.data.annotations.coco import load_usable_instances

        self._path = path
        self._images = images or _images_of(path)
        self._instances: Instances = load_usable_instances(path)
        self.left_out: Sequence[str] = self._instances.left_out
        self.categories: Mapping[int, str] = self._instances.categories

    @property
    def ids(self) -> npt.NDArray[np.bytes_]:
        """See `AnnotatedImages`."""
        return np.array([os.fsencode(Path(entry.image.file_name).stem) for entry in self._instances.images], dtype="S")

    def read(self, index: int) -> AnnotatedImage:
        """See `AnnotatedImages`."""
        entry = self._instances.images[index]
        path = self._images / entry.image.file_name
        # Every image was searched for every category.
        present = {mask.category_id for _, mask in entry.masks}
        absent = tuple(name for number, name in self.categories.items() if number not in present)
        crowds = frozenset(self.categories[mask.category_id] for _, mask in entry.masks if mask.iscrowd)
        return AnnotatedImage(path.stem, path, entry.annotation(), self._path, absent=absent, incomplete=crowds)


def _images_of(path: Path) -> Path:
    name, root = path.stem.removeprefix("instances_"), path.parent.parent
    for folder in (root / name, root / "images" / name):
        if folder.is_dir():
            return folder
    raise UserError(f"The images of {path} are not in {root / name}: name their folder with --images.")
