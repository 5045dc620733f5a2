"""Annotation files that stand alone, with a folder of images: COCO's, LVIS's and SA-Co's."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from efficientsam3.data.layouts.coco import CocoImages
from efficientsam3.data.layouts.layout import AnnotatedImage, AnnotatedImages
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import read_bytes

if TYPE_CHECKING:
    from efficientsam3.data.annotations.coco import RunLengths
    from efficientsam3.data.annotations.sa1b import CompressedMask
    from efficientsam3.data.annotations.saco import PhraseFile

_VIDEOS, _PAIRS, _LVIS = rb'"video_np_pairs"\s*:', rb'"text_input"\s*:', rb'"neg_category_ids"\s*:'


def open_annotation_file(path: Path, images: Path | None, others: Sequence[Path] = ()) -> AnnotatedImages:
    """Open a file in whichever of the formats it is.

    Args:
        path: the `.json`.
        images: the folder of its images; COCO's and LVIS's are found where COCO has them.
        others: the same pairs of SA-Co Gold by other annotators.

    Raises:
        BrokenAnnotationError: the file cannot be read or is not in its format.
        UserError: its images are not where they should be.
    """
    content = _read(path)
    if re.search(_VIDEOS, content) or re.search(_PAIRS, content):
        return SacoImages(path, images, others)
    if others:
        raise UserError(f"--annotators has no effect: {path} is not a file of SA-Co, leave it out.")
    return LvisImages(path, images) if re.search(_LVIS, content) else CocoImages(path, images)


class LvisImages:
    """An LVIS file with the folder of COCO's images; see `AnnotatedImages`."""

    def __init__(self, path: Path, images: Path | None = None) -> None:
        """Read the file's structure.

        Args:
            path: such as `lvis_v1_val.json`.
            images: the folder that holds `train2017/` and `val2017/`, or the images themselves; by default the file's
                own folder, or the one above it.

        Raises:
            BrokenAnnotationError: the file is not in LVIS's format.
            UserError: the images are not there.
        """
        from efficientsam3.data.annotations.lvis import Lvis

        self._path, self._lvis = path, Lvis(path)
        self.categories: Mapping[int, str] = self._lvis.categories
        self.left_out: Sequence[str] = ()
        folders = {image.folder for image in self._lvis.images if image.folder is not None}
        candidates = [images] if images else [path.parent, path.parent.parent, path.parent.parent / "images"]
        above = [place for place in candidates if any((place / folder).is_dir() for folder in folders)]
        if not above and images is None:
            raise UserError(f"The images of {path} are not beside it: name the folder of train2017/ with --images.")
        self._images, self._flat = (above[0], False) if above else (candidates[0], True)

    @property
    def ids(self) -> npt.NDArray[np.bytes_]:
        """See `AnnotatedImages`."""
        names = (image.instances.image.file_name for image in self._lvis.images)
        return np.array([os.fsencode(Path(name).stem) for name in names], dtype="S")

    def read(self, index: int) -> AnnotatedImage:
        """See `AnnotatedImages`."""
        entry = self._lvis.images[index]
        folder = "" if self._flat or entry.folder is None else entry.folder
        path = self._images / folder / entry.instances.image.file_name
        annotation = entry.instances.annotation()
        return AnnotatedImage(path.stem, path, annotation, self._path, absent=entry.absent, incomplete=entry.incomplete)


class SacoImages:
    """A SA-Co file with the folder of its images; see `AnnotatedImages`. Ids are those of the layout `images`."""

    def __init__(self, path: Path, images: Path | None, others: Sequence[Path] = ()) -> None:
        """Read the files' structure; see `open_annotation_file`.

        Raises:
            BrokenAnnotationError: a file is not in the published format.
            UserError: the folder of images is not given, or the files do not have the same images.
        """
        if images is None:
            raise UserError(f"{path} does not say where its images are: name their folder with --images.")
        self._path, self._images = path, images
        self._file, self._others = _open(path), [_open(other) for other in others]
        self._places = [{name: place for place, name in enumerate(other.names)} for other in self._others]
        for other, places in zip(others, self._places, strict=True):
            if places.keys() != set(self._file.names):
                raise UserError(f"{other} and {path} do not annotate the same images: give files of one set.")
        self.left_out: Sequence[str] = self._file.left_out
        self.categories: Mapping[int, str] = dict(enumerate(self._file.phrases))
        self._numbers = {phrase: number for number, phrase in self.categories.items()}

    @property
    def ids(self) -> npt.NDArray[np.bytes_]:
        """See `AnnotatedImages`."""
        return np.array([os.fsencode(os.path.splitext(name)[0]) for name in self._file.names], dtype="S")

    def read(self, index: int) -> AnnotatedImage:
        """See `AnnotatedImages`."""
        from efficientsam3.data.annotations.coco import InstanceMask
        from efficientsam3.data.annotations.sa1b import ImageAnnotation, ImageRecord

        image = self._file.image(index)
        record = ImageRecord(
            image_id=image.file_name, width=image.width, height=image.height, file_name=image.file_name
        )
        masks = [
            # Box and area are the mask's own, wherever they are needed.
            InstanceMask(segmentation=self._mask(mask), bbox=(0, 0, 0, 0), area=0, category_id=number, iscrowd=False)
            for pair in image.pairs
            for number in [self._numbers[pair.text]]
            for mask in pair.masks
        ]
        incomplete = {pair.text for pair in image.pairs if not pair.exhaustive}
        others: dict[str, list[tuple[CompressedMask, ...]]] = {}
        for other, places in zip(self._others, self._places, strict=True):
            for pair in other.image(places[image.file_name]).pairs:
                others.setdefault(pair.text, []).append(tuple(self._mask(mask) for mask in pair.masks))
                incomplete |= set() if pair.exhaustive else {pair.text}
        return AnnotatedImage(
            os.path.splitext(image.file_name)[0],
            self._images / image.file_name,
            ImageAnnotation(image=record, annotations=list(masks)),
            self._path,
            negatives=tuple(pair.text for pair in image.pairs if not pair.masks),
            incomplete=frozenset(incomplete),
            others=others,
        )

    def _mask(self, mask: "RunLengths") -> "CompressedMask":
        from efficientsam3.data.annotations.coco import compress
        from efficientsam3.data.annotations.sa1b import BrokenAnnotationError

        try:
            return compress(mask, mask.size)
        except ValueError as error:
            raise BrokenAnnotationError(f"SA-Co file {self._path} has a broken mask ({error}): replace it.") from error


def _open(path: Path) -> "PhraseFile":
    from efficientsam3.data.annotations.saco import ImagePhrases, VideoPhrases

    return VideoPhrases(path) if re.search(_VIDEOS, _read(path)) else ImagePhrases(path)


def _read(path: Path) -> bytes:
    from efficientsam3.data.annotations.coco import MAX_INSTANCES_BYTES
    from efficientsam3.data.annotations.sa1b import UnreadableAnnotationError

    try:
        return read_bytes(path, MAX_INSTANCES_BYTES)
    except OSError as error:
        raise UnreadableAnnotationError(
            f"Annotation file {path} cannot be read ({error.strerror}): replace it."
        ) from error
