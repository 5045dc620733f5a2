"""What is questionable in COCO's masks, with COCO's conventions.

Boxes of run lengths go from edge to edge of whole pixels, w = xmax - xmin + 1. Those of polygons are the polygons' own,
to fractions of a pixel, and so is their area, while filling them takes whole pixels.
"""

from itertools import pairwise
from math import hypot

from efficientsam3.data.annotations.coco import CocoAnnotation, ImageInstances, Polygon, RunLengths, compress
from efficientsam3.data.annotations.rle import Rle

Edges = tuple[float, float, float, float]  # left, top, right, bottom
_BOX_TOLERANCE = 1.0  # pixels, for each edge of a polygon's box
_AREA_TOLERANCE = 0.5  # pixels for each pixel of perimeter; filling random simple polygons took up to 0.21


def instance_problems(instances: ImageInstances) -> list[str]:
    """Sentences about what is wrong with the masks of one image; empty if nothing is.

    Masks from run lengths must have the stated area to the pixel, and the box to half a pixel. For polygons, the area
    may differ by one pixel and half a pixel for each pixel of perimeter, and an edge of the box by one pixel.
    """
    problems = []
    for number, entry in instances.masks:
        try:
            found = _area_and_box(entry, (instances.image.height, instances.image.width))
        except ValueError as error:
            found = [f"broken mask, {error}"]
        where = f"annotations.{number} (id {entry.id}, of {instances.image.file_name})"
        problems += [f"{where}: {problem}" for problem in found]
    return problems


def _area_and_box(entry: CocoAnnotation, size: tuple[int, int]) -> list[str]:
    shape = entry.segmentation
    rle = Rle(*size, compress(shape, size).counts)
    box = rle.box()
    if box is None:
        return ["empty mask"]
    problems = []
    area_tolerance = 0 if isinstance(shape, RunLengths) else 1 + _AREA_TOLERANCE * sum(map(_perimeter, shape))
    if abs(entry.area - rle.area) > area_tolerance:
        problems.append(f"area {entry.area:g} where the mask has {rle.area} pixels")
    x, y, width, height = entry.bbox
    given = x, y, x + width, y + height
    if not isinstance(shape, RunLengths):
        fits = _fit(given, _extent(shape), _BOX_TOLERANCE)
    elif not (fits := _fit(given, (box.xmin, box.ymin, box.xmax + 1, box.ymax + 1), 0.5)) and _fit(given, box, 0.5):
        return [*problems, "box in SA-1B's convention, one pixel smaller than COCO's"]
    return problems if fits else [*problems, "box is not the mask's"]


def _perimeter(polygon: Polygon) -> float:
    corners = list(zip(polygon[::2], polygon[1::2], strict=True))
    return sum(hypot(x1 - x0, y1 - y0) for (x0, y0), (x1, y1) in pairwise([*corners, corners[0]]))


def _extent(polygons: list[Polygon]) -> Edges:
    xs = [x for polygon in polygons for x in polygon[::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    return min(xs), min(ys), max(xs), max(ys)


def _fit(given: Edges, expected: Edges, tolerance: float) -> bool:
    return all(abs(one - other) <= tolerance for one, other in zip(given, expected, strict=True))
