"""COCO's instances files, read as untrusted input: https://cocodataset.org/#format-data, "object detection".

One JSON file has all masks of a split: as polygons, as run lengths in a list, or as compressed run lengths
(see `rle`). They become the records that SA-1B's reader gives. pycocotools turns polygons into pixels; numbers
that would make it allocate without bound are refused first.
"""

import json
from array import array
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from efficientsam3.data.annotations.sa1b import (
    BrokenAnnotationError,
    CompressedMask,
    ImageAnnotation,
    ImageRecord,
    MaskAnnotation,
    UnreadableAnnotationError,
)
from efficientsam3.data.find import IMAGE_SUFFIXES
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import read_bytes

MAX_INSTANCES_BYTES = 4 << 30
Side = Annotated[int, Field(gt=0, le=46_340)]  # of an image in pixels, so that none has 2**31
# Kept as an array, in a quarter of a list's memory: COCO has tens of millions of these numbers.
Polygon = Annotated[list[FiniteFloat], AfterValidator(lambda numbers: array("d", numbers))]
Parsed = TypeVar("Parsed", bound=BaseModel)


def _image_name(name: str) -> str:
    if name.startswith(".") or {"/", "\\", "\0", "\n", "\r"} & set(name) or not name.lower().endswith(IMAGE_SUFFIXES):
        raise ValueError(f"{name!r} is not the plain name of a JPEG, PNG or WebP file")
    return name


class Record(BaseModel):
    """What the files of COCO and its like consist of; keys that are not in use are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class CocoImage(Record):
    """One entry of `images`."""

    id: int
    file_name: Annotated[str, AfterValidator(_image_name)]
    width: Side
    height: Side


class RunLengths(Record):
    """A mask as runs, zeros first, column by column: their lengths, or COCO's compressed string of them."""

    size: tuple[int, int] = Field(description="height, width in pixels")
    counts: list[int] | str


class CocoAnnotation(Record):
    """One entry of `annotations`."""

    id: int
    image_id: int
    category_id: int
    segmentation: list[Polygon] | RunLengths = Field(description="polygons are x, y, x, y, ... in pixels")
    area: FiniteFloat
    bbox: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
    iscrowd: Literal[0, 1]


class CocoCategory(Record):
    """One entry of `categories`."""

    id: int
    name: str


class _ImagesOnly(Record):
    images: list[CocoImage]


class _File(_ImagesOnly):
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


class _Tables(Record):
    """A file whose entries are not checked yet."""

    images: list[Any]
    annotations: list[Any]
    categories: list[Any]


class InstanceMask(MaskAnnotation):
    """A mask whose `bbox` and `area` are as the file says: w and h from edge to edge, xmax - xmin + 1 of pixels."""

    category_id: int
    iscrowd: bool = Field(description="a region of many objects")


@dataclass(frozen=True)
class ImageInstances:
    """What an instances file says about one image."""

    path: Path  # the JSON file
    image: CocoImage
    masks: tuple[tuple[int, CocoAnnotation], ...]  # each with its index in the file's `annotations`

    def annotation(self) -> ImageAnnotation:
        """The image with its masks, in the file's order.

        Raises:
            BrokenAnnotationError: a mask is malformed; named by file and field.
            UserError: pycocotools is not installed.
        """
        image = self.image
        record = ImageRecord(image_id=image.id, width=image.width, height=image.height, file_name=image.file_name)
        masks: list[MaskAnnotation] = []
        for number, entry in self.masks:
            try:
                segmentation = compress(entry.segmentation, (image.height, image.width))
            except ValueError as error:
                raise _broken(self.path, f"annotations.{number}.segmentation: {error}") from error
            masks.append(
                InstanceMask(
                    segmentation=segmentation,
                    bbox=entry.bbox,
                    area=entry.area,
                    category_id=entry.category_id,
                    iscrowd=bool(entry.iscrowd),
                )
            )
        return ImageAnnotation(image=record, annotations=masks)


@dataclass(frozen=True)
class Instances:
    """A file whose structure is right. `id_problems`: sentences about ids that are repeated or do not exist."""

    images: list[ImageInstances]  # in the file's order
    categories: dict[int, str]  # id to name
    id_problems: list[str]
    left_out: list[str]  # sentences about entries that are malformed or do not fit; see `load_usable_instances`


def read_instances(path: Path) -> Iterator[ImageAnnotation]:
    """Read a file, image by image; masks become compressed run lengths when their image's turn comes.

    Args:
        path: such as `annotations/instances_val2017.json`.

    Returns:
        Images in the file's order; their masks are `InstanceMask`.

    Raises:
        BrokenAnnotationError: the file cannot be read or is not in COCO's format, or an id is repeated or missing; or,
            when an image's turn comes, one of its masks is malformed.
    """
    return (image.annotation() for image in _load_consistent_instances(path).images)


def _load_consistent_instances(path: Path) -> Instances:
    """`load_instances`, refusing a file whose ids do not fit together.

    Raises:
        BrokenAnnotationError: see `load_instances`; or an id is repeated or missing.
    """
    instances = load_instances(path)
    if instances.id_problems:
        raise _broken(path, instances.id_problems[0])
    return instances


def load_usable_instances(path: Path) -> Instances:
    """`load_instances`, without the entries that are malformed, or whose image or category is not there.

    Raises:
        BrokenAnnotationError: the file cannot be read or has no such tables, or two images have one id or file name.
    """
    left_out: list[str] = []
    try:
        file = _parse(path, _File)
    except UnreadableAnnotationError:
        raise
    except BrokenAnnotationError:
        file, left_out = _well_formed(_parse(path, _Tables))
    for problem in _image_problems(file):
        raise _broken(path, problem)
    images, categories = {image.id for image in file.images}, {category.id for category in file.categories}
    fitting = []
    for entry in file.annotations:
        lacking = [
            f"no {kind} has the id {key}"
            for kind, key, known in (("image", entry.image_id, images), ("category", entry.category_id, categories))
            if key not in known
        ]
        if lacking:
            left_out.append(f"annotation {entry.id}: {lacking[0]}")
        else:
            fitting.append(entry)
    repeated = _repeated("categories", "id", (category.id for category in file.categories))
    usable = _instances(path, file.model_copy(update={"annotations": fitting}))
    return replace(usable, left_out=[f"Instances file {path}, {reason}" for reason in [*left_out, *repeated]])


def _well_formed(file: _Tables) -> tuple[_File, list[str]]:
    """The entries that are right, and the reasons of the others."""
    left_out: list[str] = []

    def parse(table: str, record: type[Parsed]) -> Iterator[Parsed]:
        for number, entry in enumerate(getattr(file, table)):
            try:
                yield record.model_validate_json(json.dumps(entry))  # as JSON: strict about types, but not about lists
            except ValidationError as error:
                left_out.append(f"{table}.{number}.{first_error(error)}")

    images, categories = list(parse("images", CocoImage)), list(parse("categories", CocoCategory))
    annotations = list(parse("annotations", CocoAnnotation))
    return _File.model_construct(images=images, annotations=annotations, categories=categories), left_out


def load_instances(path: Path) -> Instances:
    """Read a file's structure; masks stay as written.

    Raises:
        BrokenAnnotationError: the file cannot be read, or is not in COCO's format.
    """
    return _instances(path, _parse(path, _File))


def _instances(path: Path, file: _File) -> Instances:
    masks: dict[int, list[tuple[int, CocoAnnotation]]] = {image.id: [] for image in file.images}
    for number, entry in enumerate(file.annotations):
        if entry.image_id in masks:
            masks[entry.image_id].append((number, entry))
    images = [ImageInstances(path, image, tuple(masks[image.id])) for image in file.images]
    categories = {category.id: category.name for category in file.categories}
    return Instances(images, categories, _id_problems(file), [])


def image_names(path: Path) -> list[str]:
    """File names of the images that a file has, in its order.

    Raises:
        BrokenAnnotationError: the file cannot be read, its `images` are not in COCO's format, or one is named twice.
    """
    names = [image.file_name for image in _parse(path, _ImagesOnly).images]
    for problem in _repeated("images", "file_name", names):
        raise _broken(path, problem)
    return names


def compress(shape: list[Polygon] | RunLengths, size: tuple[int, int]) -> CompressedMask:
    """Turn any of COCO's three kinds of masks into compressed run lengths.

    Strings are passed on unchanged: `MaskAnnotation.rle` parses them.

    Args:
        shape: a `segmentation`.
        size: height, width of its image in pixels.

    Raises:
        ValueError: the polygons or run lengths are malformed, or of another size than the image.
        UserError: pycocotools is not installed.
    """
    if isinstance(shape, RunLengths):
        if shape.size != size:
            raise ValueError(f"its size {shape.size} is not the image's {size} (height, width)")
        if isinstance(shape.counts, str):
            return CompressedMask(size=size, counts=shape.counts)
        _check_runs(shape.counts, size)
        return CompressedMask(size=size, counts=_encode([{"size": list(size), "counts": shape.counts}], size))
    _check_polygons(shape, size)
    return CompressedMask(size=size, counts=_encode([list(polygon) for polygon in shape], size))


def _encode(shapes: list[object], size: tuple[int, int]) -> str:
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise UserError("COCO's masks need pycocotools: pip install 'efficientsam3[stage1]'.") from error
    counts: bytes = coco_mask.merge(coco_mask.frPyObjects(shapes, *size))["counts"]
    return counts.decode("ascii")


def _check_runs(runs: list[int], size: tuple[int, int]) -> None:
    if any(run < 0 for run in runs) or sum(runs) != size[0] * size[1]:
        raise ValueError(f"runs that are negative or do not add up to a mask of {size[0]} x {size[1]}")


def _check_polygons(polygons: list[Polygon], size: tuple[int, int]) -> None:
    height, width = size
    if not polygons:
        raise ValueError("no polygon")
    for number, polygon in enumerate(polygons):
        if len(polygon) % 2 or len(polygon) < 6:
            raise ValueError(f"polygon {number} has {len(polygon)} numbers, not three or more pairs of x and y")
        # Some tools write points slightly outside. Filling up to one far away would take memory for all of that area.
        for axis, side in (("x", width), ("y", height)):
            numbers = polygon[axis == "y" :: 2]
            if not -side <= min(numbers) <= max(numbers) <= 2 * side:
                raise ValueError(f"polygon {number} has an {axis} further outside than the image's own size")


def _parse(path: Path, model: type[Parsed]) -> Parsed:
    try:
        return model.model_validate_json(read_bytes(path, MAX_INSTANCES_BYTES))
    except OSError as error:
        raise UnreadableAnnotationError(
            f"Instances file {path} cannot be read ({error.strerror}): replace it."
        ) from error
    except ValidationError as error:
        raise _broken(path, first_error(error)) from error


def first_error(error: ValidationError, *records: type[BaseModel]) -> str:
    """What is wrong, and the place of it: fields of COCO's records and of these."""
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    # If a field has alternatives, the error of the one that was parsed furthest says most.
    deepest = max(
        (item for item in errors if item["loc"][:3] == errors[0]["loc"][:3]), key=lambda item: len(item["loc"])
    )
    known: list[type[BaseModel]] = [_File, CocoImage, CocoAnnotation, CocoCategory, RunLengths, *records]
    fields = {name for record in known for name in record.model_fields}
    where = ".".join(str(part) for part in deepest["loc"] if isinstance(part, int) or part in fields)
    return f"{where}: {deepest['msg']}" if where else deepest["msg"]


def _broken(path: Path, what: str) -> BrokenAnnotationError:
    return BrokenAnnotationError(f"Instances file {path} is not in COCO's format ({what}): replace it.")


def _id_problems(file: _File) -> list[str]:
    problems = [
        *_image_problems(file),
        *_repeated("annotations", "id", (entry.id for entry in file.annotations)),
        *_repeated("categories", "id", (category.id for category in file.categories)),
    ]
    images, categories = {image.id for image in file.images}, {category.id for category in file.categories}
    for number, entry in enumerate(file.annotations):
        if entry.image_id not in images:
            problems.append(f"annotations.{number}.image_id: no image has the id {entry.image_id}")
        if entry.category_id not in categories:
            problems.append(f"annotations.{number}.category_id: no category has the id {entry.category_id}")
    return problems


def _image_problems(file: _File) -> list[str]:
    return [
        *_repeated("images", "id", (image.id for image in file.images)),
        *_repeated("images", "file_name", (image.file_name for image in file.images)),
    ]


def _repeated(table: str, field: str, values: Iterable[Hashable]) -> list[str]:
    counts = Counter(values)
    return [f"{table}: {count} have the {field} {value}" for value, count in counts.items() if count > 1]
