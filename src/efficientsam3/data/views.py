"""Further views of a dataset's images: mirrored and cropped copies with their masks, as a dataset in SA-1B's layout.

What a teacher costs is paid once for each image and view, so that many cheap students can learn from a few images.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import simplejpeg

from efficientsam3.data.annotations.deepest import deepest_pixel
from efficientsam3.data.annotations.encode import encode_rle
from efficientsam3.data.annotations.sa1b import BrokenAnnotationError, MaskAnnotation, NoAnnotationError
from efficientsam3.data.augment import augmentation_seed
from efficientsam3.data.images import BrokenImageError, Pixels, read_image, read_pixels
from efficientsam3.data.layouts import DATASETS, list_images
from efficientsam3.data.layouts.sa1b import annotation_path
from efficientsam3.data.objects import usable_masks, wrong_size
from efficientsam3.data.parallel import Advance, map_processes
from efficientsam3.data.split import SPLITS, Split
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import atomic_path, write_json
from efficientsam3.runtime.json_files import read_json_object
from efficientsam3.runtime.locks import locked
from efficientsam3.runtime.progress import progress_bar

if TYPE_CHECKING:
    from efficientsam3.data.layouts.layout import AnnotatedImages
    from efficientsam3.data.listing import ImageListing

SETTINGS_FILE = "views.json"
_LOCK = ".views.lock"
_IMAGES_PER_UNIT = 20
_QUALITY = 95  # of the views' JPEGs
_STRETCH = math.log(1.25)  # largest change of a crop's proportions
_KEPT = 0.3  # share of an object that has to be in a crop
_FEWEST_PIXELS = 64  # of an object in a crop


@dataclass(frozen=True)
class ViewSettings:
    """Which views are made of each image."""

    count: int = 3  # of each training image; the first is the whole, mirrored
    smallest: float = 0.5  # share of the image's sides that a crop has at least
    seed: int = 0


@dataclass(frozen=True)
class View:
    """A part of an image, perhaps mirrored left to right."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool

    def of(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The view of (H, W, ...)."""
        part = array[self.top : self.top + self.height, self.left : self.left + self.width]
        return np.ascontiguousarray(part[:, ::-1] if self.mirrored else part)


@dataclass
class ViewReport:
    """What was done."""

    images: int = 0  # written now
    left_out: list[str] = field(default_factory=list)  # a sentence for each image that is broken


def draw_view(settings: ViewSettings, image_id: str, number: int, size: tuple[int, int]) -> View:
    """View `number`, from 1, of an image of `size` (height, width) pixels: a function of its id and the seed."""
    height, width = size
    if number == 1:
        return View(0, 0, height, width, mirrored=True)
    generator = np.random.default_rng((augmentation_seed(settings.seed, image_id), number))
    share = generator.uniform(settings.smallest, 1)
    stretch = math.exp(generator.uniform(-_STRETCH, _STRETCH) / 2)
    rows = min(height, max(1, round(height * share * stretch)))
    columns = min(width, max(1, round(width * share / stretch)))
    return View(
        int(generator.integers(height - rows + 1)),
        int(generator.integers(width - columns + 1)),
        rows,
        columns,
        mirrored=bool(generator.integers(2)),
    )


def write_views(data_path: Path, output: Path, settings: ViewSettings, dataset: str, workers: int = 1) -> ViewReport:
    """Write a dataset of the images of `data_path`, and of views of its training images.

    What is there already is left alone, so that an interrupted run goes on.

    Args:
        data_path: the dataset.
        output: the new one, in SA-1B's layout; names of categories do not come along.
        settings: which views.
        dataset: the layout of `data_path`.
        workers: processes.

    Raises:
        UserError: `data_path` is no such dataset, or lies in `output` or the other way round; `output` has other views,
            or is something else; or it cannot be written.
    """
    _check_apart(data_path, output)
    listings = {split: list_images(data_path, split, dataset) for split in SPLITS}
    if not any(map(len, listings.values())):
        raise UserError(f"{data_path} has no images: give a dataset that has some.")
    report = ViewReport()
    with locked(output / _LOCK, f"the dataset {output}"):
        _check_settings(data_path, output, settings)
        units = [
            (split, range(start, min(start + _IMAGES_PER_UNIT, len(listing))))
            for split, listing in listings.items()
            for start in range(0, len(listing), _IMAGES_PER_UNIT)
        ]
        total = sum(map(len, listings.values()))
        with progress_bar("views", total) as advance:
            work = partial(_write_unit, data_path, output, settings, dataset)
            for part in map_processes(work, units, workers, advance):
                report.images += part.images
                report.left_out += part.left_out
    report.left_out.sort()
    return report


def _check_apart(data_path: Path, output: Path) -> None:
    source, target = data_path.resolve(), output.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise UserError(f"--output {output} and the dataset {data_path} lie in one another: choose a folder elsewhere.")


def _check_settings(data_path: Path, output: Path, settings: ViewSettings) -> None:
    """Compare with what is there, or note it.

    Raises:
        UserError: `output` has other views, or is something else.
    """
    path = output / SETTINGS_FILE
    given = {
        "source": str(data_path.resolve()),
        "views": settings.count,
        "smallest": settings.smallest,
        "seed": settings.seed,
    }
    if path.exists():
        found = read_json_object(path, "choose another --output")
        if found != given:
            raise UserError(f"{output} has other views ({found}) than {given}: choose another --output.")
        return
    if others := sorted(each.name for each in output.iterdir() if each.name != _LOCK):
        raise UserError(f"--output {output} has something else in it ({others[0]}): choose a new folder.")
    write_json(path, given)


def _write_unit(
    data_path: Path,
    output: Path,
    settings: ViewSettings,
    dataset: str,
    unit: tuple[Split, range],
    advance: Advance,
) -> ViewReport:
    split, indices = unit
    listing, annotated = list_images(data_path, split, dataset), DATASETS[dataset].annotated(data_path, split)
    places = {} if annotated is None else {image_id: place for place, image_id in enumerate(annotated.ids.tolist())}
    report = ViewReport()
    for index in indices:
        place = places.get(listing.ids[index])
        try:
            report.images += _write_image(listing, index, annotated, place, output, split, settings)
        except (BrokenImageError, BrokenAnnotationError) as error:
            report.left_out.append(str(error))
        advance(1)
    return report


def _write_image(
    listing: "ImageListing",
    index: int,
    annotated: "AnnotatedImages | None",
    place: int | None,
    output: Path,
    split: Split,
    settings: ViewSettings,
) -> int:
    """Write an image and its views, with their annotations; returns how many were not there yet."""
    image_id, source = listing.id(index), listing.path(index)
    numbers = range(settings.count + 1 if split == "train" else 1)
    wanted = {number: output / "images" / split / _name(image_id, number, source.suffix) for number in numbers}
    missing = {number: path for number, path in wanted.items() if not path.exists()}
    if not missing:
        return 0
    pixels = read_pixels(source)
    size = (pixels.shape[0], pixels.shape[1])
    masks = _read_masks(annotated, place, source, size)
    for number, path in missing.items():
        view = View(0, 0, *size, mirrored=False) if number == 0 else draw_view(settings, image_id, number, size)
        if masks is not None:  # first, since an image that is there is done
            write_json(annotation_path(output, split, path.stem), _annotation(path, view, masks))
        content = read_image(source) if number == 0 else _jpeg(view.of(pixels))
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    return len(missing)


def _name(image_id: str, number: int, suffix: str) -> str:
    return f"{image_id}{suffix}" if number == 0 else f"{image_id}_view{number}.jpg"


def _jpeg(pixels: Pixels) -> bytes:
    content: bytes = simplejpeg.encode_jpeg(pixels, quality=_QUALITY, colorspace="RGB", colorsubsampling="444")
    return content


def _read_masks(
    annotated: "AnnotatedImages | None", place: int | None, source: Path, size: tuple[int, int]
) -> list[MaskAnnotation] | None:
    """The usable masks of one image; None where it has no annotation.

    Raises:
        BrokenAnnotationError: the annotation cannot be read, or is of another size than the image.
    """
    if annotated is None or place is None:
        return None
    try:
        image = annotated.read(place)
    except NoAnnotationError:
        return None
    expected = (image.annotation.image.height, image.annotation.image.width)
    if expected != size:
        raise wrong_size(source, size, expected)
    return [mask for _, mask in usable_masks(image)]


def _annotation(path: Path, view: View, masks: list[MaskAnnotation]) -> dict[str, Any]:
    """A file's content, in SA-1B's format."""
    return {
        "image": {"image_id": path.stem, "width": view.width, "height": view.height, "file_name": path.name},
        "annotations": list(_seen(view, masks)),
    }


def _seen(view: View, masks: list[MaskAnnotation]) -> Iterator[dict[str, Any]]:
    """What a view shows of the masks."""
    for number, annotation in enumerate(masks):
        mask = view.of(annotation.rle.mask())
        area = int(mask.sum())
        if area < min(annotation.rle.area, max(_FEWEST_PIXELS, _KEPT * annotation.rle.area)):
            continue
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y, last_x, last_y = int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])
        yield {
            "id": number,
            "segmentation": encode_rle(mask),
            "area": area,
            "bbox": [x, y, last_x - x, last_y - y],
            "point_coords": [list(deepest_pixel(mask)[1])],
        }
