"""SA-1B's annotation files: https://ai.meta.com/datasets/segment-anything-downloads/, "dataset format"."""

from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from efficientsam3.data.annotations.rle import PixelBox, Rle
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import read_bytes

MAX_ANNOTATION_BYTES = 64 << 20


class BrokenAnnotationError(UserError):
    """An annotation file is missing, unreadable, or not in SA-1B's format."""


class UnreadableAnnotationError(BrokenAnnotationError):
    """A file that the system does not give: what is in it may be right."""


class NoAnnotationError(UnreadableAnnotationError):
    """There is no such file."""


class _Record(BaseModel):
    # Only the keys in use are checked; SA-1B has more, and files from elsewhere have others.
    model_config = ConfigDict(frozen=True, extra="ignore")


class CompressedMask(_Record):
    """A mask in COCO's compressed run lengths."""

    size: tuple[int, int] = Field(description="height, width in pixels")
    counts: str = Field(description="see efficientsam3.data.annotations.rle")


class MaskAnnotation(_Record):
    """One mask of an image."""

    segmentation: CompressedMask
    bbox: tuple[float, float, float, float] = Field(description="x, y, w = xmax - xmin, h = ymax - ymin, in pixels")
    area: float = Field(description="pixels of the mask")
    point_coords: list[tuple[float, float]] = Field(default=[], description="x, y in pixels, fractions allowed")

    @cached_property
    def rle(self) -> Rle:
        """The mask as runs.

        Raises:
            ValueError: its run lengths are malformed.
        """
        return Rle(*self.segmentation.size, self.segmentation.counts)


class ImageRecord(_Record):
    """The image that the masks belong to."""

    image_id: int | str
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    file_name: str


class ImageAnnotation(_Record):
    """One image with all its masks, as in one file."""

    image: ImageRecord
    annotations: list[MaskAnnotation]


def read_annotation(path: Path) -> ImageAnnotation:
    """Read one file. Masks are parsed on access.

    Raises:
        BrokenAnnotationError: the file cannot be read, or is not in SA-1B's format.
    """
    try:
        return ImageAnnotation.model_validate_json(read_bytes(path, MAX_ANNOTATION_BYTES))
    except OSError as error:
        kind = NoAnnotationError if isinstance(error, FileNotFoundError) else UnreadableAnnotationError
        raise kind(f"Annotation {path} cannot be read ({error.strerror}): replace it.") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BrokenAnnotationError(
            f"Annotation {path} is not in SA-1B's format ({where + ': ' if where else ''}{first['msg']}): replace it."
        ) from error


def mask_problems(annotation: ImageAnnotation) -> list[str]:
    """Sentences about what is wrong with the masks of one image; empty if nothing is."""
    problems = []
    for number, mask in enumerate(annotation.annotations):
        size = annotation.image.height, annotation.image.width
        try:
            found = _size_problem(mask, size) or [*_area_and_box(mask), *_points(mask)]
        except ValueError as error:
            found = [f"broken mask, {error}"]
        problems += [f"mask {number}: {problem}" for problem in found]
    return problems


def _size_problem(mask: MaskAnnotation, size: tuple[int, int]) -> list[str]:
    if mask.segmentation.size == size:
        return []
    return [f"its size {mask.segmentation.size} is not the image's {size} (height, width)"]


def _area_and_box(mask: MaskAnnotation) -> list[str]:
    problems = []
    if mask.area != mask.rle.area:
        problems.append(f"area {mask.area:g} where the mask has {mask.rle.area} pixels")
    box = mask.rle.box()
    if box is None:
        return [*problems, "empty mask"]
    if not _fits(mask.bbox, box, 0):
        coco = _fits(mask.bbox, box, 1)
        problems.append("box in COCO's convention, one pixel larger than SA-1B's" if coco else "box is not the mask's")
    return problems


def _fits(bbox: tuple[float, float, float, float], box: PixelBox, extra: int) -> bool:
    expected = (box.xmin, box.ymin, box.xmax - box.xmin + extra, box.ymax - box.ymin + extra)
    return all(abs(given - want) < 0.5 for given, want in zip(bbox, expected, strict=True))


def _points(mask: MaskAnnotation) -> list[str]:
    height, width = mask.segmentation.size
    outside = [point for point in mask.point_coords if not (0 <= point[0] < width and 0 <= point[1] < height)]
    return [f"point ({x:g}, {y:g}) outside the image" for x, y in outside]
