"""`sa1b`: `images/{train,val}/sa_N.jpg` with `annotations/{train,val}/sa_N.json`; an image's id is its file's stem."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from efficientsam3.data.layouts.layout import AnnotatedImage, AnnotatedImages, Layout
from efficientsam3.data.split import SPLITS, Split
from efficientsam3.runtime.errors import UserError

if TYPE_CHECKING:
    from efficientsam3.data.listing import ImageListing
    from efficientsam3.data.problems import Problem


class Sa1b(Layout):
    """SA-1B, as `efficientsam3 reorg` arranges it."""

    name = "sa1b"
    description = "images/{train,val} and annotations/{train,val}, as data/reorg_sa1b.py makes them"
    remedy = "make one with `python data/reorg_sa1b.py`, or name another with DATA.DATA_PATH"

    def recognises(self, folder: Path) -> bool:
        """See `Layout`."""
        return any((folder / "images" / split).is_dir() for split in SPLITS)

    def list_split(self, data_path: Path, split: Split) -> "ImageListing":
        """See `Layout`."""
        from efficientsam3.data.listing import ImageListing

        if not (data_path / "images").is_dir():
            raise UserError(f"DATA_PATH {data_path} has no folder images/: {self.remedy}.")
        return ImageListing.of_folder(data_path / "images" / split)

    def annotated(self, data_path: Path, split: Split) -> AnnotatedImages | None:
        """See `Layout`."""
        folder = data_path / "annotations" / split
        return Sa1bImages(self.list_split(data_path, split), folder) if folder.is_dir() else None

    def has_annotations(self, data_path: Path, split: Split) -> bool:
        """See `Layout`."""
        return any((data_path / "annotations" / split).glob("*.json"))

    def find_annotations(
        self, data_path: Path, split: Split, listing: "ImageListing", problems: "list[Problem]"
    ) -> Callable[[int], Path]:
        """See `Layout`; a file may be absent."""
        return lambda index: annotation_path(data_path, split, listing.id(index))

    def strays(self, data_path: Path, listings: "Mapping[Split, ImageListing]") -> "list[Problem]":
        """See `Layout`; annotations without an image."""
        from efficientsam3.data.problems import Kind, Problem

        problems = []
        for split, listing in listings.items():
            folder = data_path / "annotations" / split
            try:
                names = os.listdir(os.fsencode(folder)) if folder.is_dir() else []
            except OSError as error:
                problems.append(Problem(Kind.UNREADABLE, folder, f"cannot be listed ({error.strerror})"))
                continue
            stems = np.array([name[:-5] for name in names if name.endswith(b".json")], dtype=np.bytes_)
            for stem in np.setdiff1d(stems, listing.ids).tolist():
                path = annotation_path(data_path, split, os.fsdecode(stem))
                problems.append(Problem(Kind.NO_IMAGE, path, f"no image in {data_path / 'images' / split}"))
        return problems

    def companions(self, data_path: Path, image: Path) -> list[Path]:
        """See `Layout`; the image's annotation."""
        return [annotation_path(data_path, image.parent.name, image.stem)]


def annotation_path(data_path: Path, split: str, image_id: str) -> Path:
    """Where an image's annotation is."""
    return data_path / "annotations" / split / f"{image_id}.json"


class Sa1bImages:
    """A listing with a folder of annotation files; see `AnnotatedImages`."""

    def __init__(self, listing: "ImageListing", annotations: Path) -> None:
        """Pair the two by image id."""
        self.categories: Mapping[int, str] = {}
        self.left_out: Sequence[str] = ()
        self._listing = listing
        self._annotations = annotations

    @property
    def ids(self) -> npt.NDArray[np.bytes_]:
        """See `AnnotatedImages`."""
        return self._listing.ids

    def read(self, index: int) -> AnnotatedImage:
        """See `AnnotatedImages`."""
        from efficientsam3.data.annotations.sa1b import read_annotation

        image_id = self._listing.id(index)
        source = self._annotations / f"{image_id}.json"
        return AnnotatedImage(image_id, self._listing.path(index), read_annotation(source), source)
