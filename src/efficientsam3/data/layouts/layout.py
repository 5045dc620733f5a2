"""The interface of a dataset layout."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from efficientsam3.data.split import Split

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from efficientsam3.data.annotations.coco import ImageInstances
    from efficientsam3.data.annotations.sa1b import CompressedMask, ImageAnnotation
    from efficientsam3.data.listing import ImageListing
    from efficientsam3.data.problems import Problem


@dataclass(frozen=True)
class AnnotatedImage:
    """One image with its annotation, and the file that the annotation comes from."""

    image_id: str
    path: Path
    annotation: "ImageAnnotation"
    source: Path
    # Phrases that the file asks although they are not in the image; names of which it has no object, so that they
    # could be asked; and those of which not every object has a mask of its own.
    negatives: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    incomplete: frozenset[str] = frozenset()
    # By phrase, the masks of each further annotator.
    others: "Mapping[str, Sequence[tuple[CompressedMask, ...]]]" = field(default_factory=dict)


class AnnotatedImages(Protocol):
    """The annotated images of one split."""

    categories: Mapping[int, str]  # id to name; empty where objects have no names
    left_out: Sequence[str]  # a sentence for each entry of a common file that is malformed

    @property
    def ids(self) -> "npt.NDArray[np.bytes_]":
        """(N,) image ids, as in a listing."""
        ...

    def read(self, index: int) -> AnnotatedImage:
        """One image.

        Raises:
            BrokenAnnotationError: its annotation cannot be read.
        """
        ...


class Layout:
    """How the folders of a dataset are arranged. This base class has no annotations."""

    name: str
    description: str  # continues its name in help texts

    @property
    def remedy(self) -> str:
        """What the user can do if DATA_PATH does not have this layout."""
        return f"name the folder of the {self.name} dataset with DATA.DATA_PATH"

    def recognises(self, folder: Path) -> bool:
        """Whether a folder has this layout."""
        raise NotImplementedError

    def list_split(self, data_path: Path, split: Split) -> "ImageListing":
        """The images of one split, possibly none; see `list_images`.

        Raises:
            UserError: the folder does not have this layout.
        """
        raise NotImplementedError

    def annotated(self, data_path: Path, split: Split) -> AnnotatedImages | None:
        """The annotated images of one split; None where the dataset has no annotations.

        Raises:
            UserError: the annotations cannot be read.
        """
        return None

    def has_annotations(self, data_path: Path, split: Split) -> bool:
        """Whether `annotated` would find any; no file is read."""
        return False

    def find_annotations(
        self, data_path: Path, split: Split, listing: "ImageListing", problems: "list[Problem]"
    ) -> "Callable[[int], Path | ImageInstances | None]":
        """For checking: a function from an image's index in the listing to its annotation, or to that file's path.

        Problems with a file of all annotations are added to `problems`.

        Raises:
            UserError: a file of all annotations cannot be read.
        """
        return lambda index: None

    def strays(self, data_path: Path, listings: "Mapping[Split, ImageListing]") -> "list[Problem]":
        """For checking: annotations without image, and images that the annotations do not name."""
        return []

    def companions(self, data_path: Path, image: Path) -> list[Path]:
        """For checking: files that are of no use without an image, whether they exist or not."""
        return []
