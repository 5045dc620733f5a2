"""One process's share of checking a dataset: some images and their annotations, read in full."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from efficientsam3.data.annotations.coco import ImageInstances
from efficientsam3.data.annotations.sa1b import (
    BrokenAnnotationError,
    UnreadableAnnotationError,
    mask_problems,
    read_annotation,
)
from efficientsam3.data.check.coco_problems import instance_problems
from efficientsam3.data.images import BrokenImageError, decode_rgb, read_image
from efficientsam3.data.parallel import Advance
from efficientsam3.data.problems import Kind, Problem


@dataclass(frozen=True)
class CheckUnit:
    """Images to check, each with its annotation: SA-1B's file, which may be absent, COCO's instances, or None."""

    images: tuple[Path, ...]
    annotations: tuple[Path | ImageInstances | None, ...]
    first: int  # the first image's number in the dataset


@dataclass
class Checked:
    """Results of a unit. Rows of broken images are zero."""

    first: int
    digests: npt.NDArray[np.uint64]  # (N,) of the files' contents
    sizes: npt.NDArray[np.int32]  # (N, 2) height, width in pixels
    bytes: int = 0
    annotated: int = 0
    masks: int = 0
    problems: list[Problem] = field(default_factory=list)


def check_files(unit: CheckUnit, advance: Advance) -> Checked:
    """Read every image and annotation of a unit.

    Args:
        unit: the images and annotations.
        advance: called with the number of images just done.
    """
    count = len(unit.images)
    checked = Checked(unit.first, np.zeros(count, dtype=np.uint64), np.zeros((count, 2), dtype=np.int32))
    for row, (image, annotation) in enumerate(zip(unit.images, unit.annotations, strict=True)):
        _check_image(image, row, checked)
        if isinstance(annotation, ImageInstances):
            _check_instances(annotation, row, checked)
        elif annotation is not None:
            _check_annotation(annotation, row, checked)
        advance(1)
    return checked


def _check_image(path: Path, row: int, checked: Checked) -> None:
    try:
        data = read_image(path)
        height, width = decode_rgb(data, path).shape[1:]
    except BrokenImageError as error:
        checked.problems.append(Problem(Kind.BROKEN_IMAGE, path, str(error)))
    except FileNotFoundError:
        checked.problems.append(Problem(Kind.MISSING, path, "named, but not there"))
    except OSError as error:
        checked.problems.append(Problem(Kind.UNREADABLE, path, f"cannot be read ({error.strerror})"))
    else:
        checked.bytes += len(data)
        checked.sizes[row] = height, width
        digest = hashlib.blake2b(data, digest_size=8).digest()
        checked.digests[row] = int.from_bytes(digest, "little") or 1  # 0 stands for broken


def _check_annotation(path: Path, row: int, checked: Checked) -> None:
    try:
        annotation = read_annotation(path)
    except UnreadableAnnotationError as error:
        if not isinstance(error.__cause__, FileNotFoundError):  # not every image has one
            checked.problems.append(Problem(Kind.UNREADABLE, path, str(error)))
        return
    except BrokenAnnotationError as error:
        checked.problems.append(Problem(Kind.BROKEN_ANNOTATION, path, str(error)))
        return
    checked.annotated += 1
    checked.masks += len(annotation.annotations)
    _check_size(path, "it", (annotation.image.height, annotation.image.width), row, checked)
    checked.problems += [Problem(Kind.MASK, path, problem) for problem in mask_problems(annotation)]


def _check_instances(instances: ImageInstances, row: int, checked: Checked) -> None:
    image = instances.image
    checked.annotated += bool(instances.masks)
    checked.masks += len(instances.masks)
    _check_size(instances.path, f"of {image.file_name} it", (image.height, image.width), row, checked)
    checked.problems += [Problem(Kind.MASK, instances.path, problem) for problem in instance_problems(instances)]


def _check_size(path: Path, subject: str, stated: tuple[int, int], row: int, checked: Checked) -> None:
    height, width = map(int, checked.sizes[row])
    if height and stated != (height, width):
        detail = f"{subject} says {stated} (height, width), the image has {(height, width)}"
        checked.problems.append(Problem(Kind.SIZE, path, detail))
