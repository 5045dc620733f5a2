"""Images of a report, as data URIs: the page fetches nothing."""

import base64
import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torchvision.utils import draw_segmentation_masks

from efficientsam3.data.annotations.rle import Rle
from efficientsam3.data.images import read_rgb
from efficientsam3.evaluate.report.gallery import Example
from efficientsam3.sam3.prompts import Prompt

RGB = tuple[int, int, int]
_TRUE: RGB = (0, 158, 115)
_FOUND: RGB = (230, 120, 0)
_PROMPT: RGB = (255, 255, 0)
_LONGEST_SIDE = 360  # pixels of an image in the report
_QUALITY = 80
_MARGIN = 1.0  # of the object's longer side, around it on every side


def data_uri(image: Image.Image, form: Literal["JPEG", "PNG"] = "JPEG") -> str:
    """An image as `data:image/...;base64,...`."""
    buffer = io.BytesIO()
    image.save(buffer, format=form, quality=_QUALITY)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def thumbnail(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """(H, W, 3) RGB, reduced where it is large."""
    image = Image.fromarray(pixels)
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    return image


def example_images(example: Example) -> list[Image.Image]:
    """The object's surroundings with the prompt, the true mask, and each model's mask.

    Raises:
        BrokenImageError: the image has been removed since it was measured.
    """
    pixels = read_rgb(example.image)
    crop = _surroundings(example.true)
    images = [_draw(pixels, None, _TRUE, crop, example.prompt), _draw(pixels, example.true, _TRUE, crop)]
    return images + [_draw(pixels, mask, _FOUND, crop) for mask in example.masks]


def _surroundings(true: Rle) -> tuple[int, int, int, int]:
    box = true.box()
    assert box is not None
    margin = round(_MARGIN * max(box.xmax - box.xmin + 1, box.ymax - box.ymin + 1))
    return (
        max(0, box.xmin - margin),
        max(0, box.ymin - margin),
        min(true.width, box.xmax + 1 + margin),
        min(true.height, box.ymax + 1 + margin),
    )


def _draw(
    pixels: torch.Tensor, rle: Rle | None, colour: RGB, crop: tuple[int, int, int, int], prompt: Prompt | None = None
) -> Image.Image:
    x0, y0, x1, y1 = crop
    part = pixels[:, y0:y1, x0:x1]
    if rle is not None:
        mask = torch.from_numpy(np.ascontiguousarray(rle.mask()[y0:y1, x0:x1]))
        part = draw_segmentation_masks(part, mask[None], alpha=0.55, colors=[colour])
    image = Image.fromarray(part.permute(1, 2, 0).contiguous().numpy())
    scale = _LONGEST_SIDE / max(image.size)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    if prompt is not None:
        _mark(ImageDraw.Draw(image), prompt, (x0, y0), scale)
    return image


def _mark(draw: ImageDraw.ImageDraw, prompt: Prompt, origin: tuple[int, int], scale: float) -> None:
    for box, _ in prompt.labelled_boxes:
        draw.rectangle(_scaled(box, origin, scale), outline=_PROMPT, width=2)
    for point, _ in prompt.labelled_points:
        # A point names a pixel, whose middle is half a pixel further.
        x, y = _scaled([coordinate + 0.5 for coordinate in point], origin, scale)
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=_PROMPT, outline=(0, 0, 0), width=2)


def _scaled(coordinates: Sequence[float], origin: tuple[int, int], scale: float) -> list[float]:
    return [(value - origin[index % 2]) * scale for index, value in enumerate(coordinates)]
