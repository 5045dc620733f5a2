"""What `predict` writes for an image: an overlay, one PNG per mask, and COCO RLE with boxes and scores.

Answers may be tensors on the CPU or arrays: NumPy reads both, and PyTorch is not needed here.
"""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from efficientsam3.data.annotations.encode import encode_rle
from efficientsam3.predict.places import Place, remove_stale_masks
from efficientsam3.runtime.files import to_json
from efficientsam3.runtime.own_files import own_path, write_own_text
from efficientsam3.sam3.promptable import Pixels, Segmentation
from efficientsam3.sam3.prompts import Prompt

_POSITIVE, _NEGATIVE = (0, 200, 0), (220, 0, 0)
_GOLDEN_ANGLE = 0.618034  # of the hue circle: neighbours in a list get colours that are far apart
Answered = tuple[Prompt, Segmentation[Any]]


def write_answers(
    place: Place, source: Path, pixels: Pixels, answers: Sequence[Answered], overwrite: bool = False
) -> Path:
    """Write `<name>_overlay.png`, `<name>_mask_NNN.png` and `<name>.json`; returns the path of the JSON.

    Args:
        place: where to.
        source: the image's path, for the record.
        pixels: (H, W, 3) uint8 RGB.
        answers: in the order of the masks' numbers; their prompts are drawn on the overlay.
        overwrite: whether to replace files that the program did not write.

    Raises:
        UserError: the folder cannot be written to, or something is there that the program did not write.
    """
    objects: list[dict[str, Any]] = []
    for prompt, found in answers:
        for mask, box, score in zip(np.asarray(found.masks), found.boxes.tolist(), found.scores.tolist(), strict=True):
            file = place.mask(len(objects))
            _save_png(file, Image.fromarray(mask.astype(np.uint8) * 255), place, overwrite)
            x0, y0, x1, y1 = box
            objects.append(
                {
                    "prompt": prompt.name,
                    "score": score,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],  # COCO's xywh, pixels
                    "segmentation": encode_rle(mask),
                    "mask": file.name,
                }
            )
    remove_stale_masks(place, len(objects))
    _save_png(place.overlay, draw_overlay(pixels, answers), place, overwrite)
    record = {"image": str(source), "height": pixels.shape[0], "width": pixels.shape[1], "objects": objects}
    write_own_text(place.record, to_json(record), place.whole, overwrite, place.own)
    return place.record


def _save_png(path: Path, image: Image.Image, place: Place, overwrite: bool) -> None:
    with own_path(path, place.whole, overwrite, place.own) as temporary:
        image.save(temporary, format="PNG")


def draw_overlay(pixels: Pixels, answers: Sequence[Answered]) -> Image.Image:
    """The image with each object in its own colour, its box and score, and the prompts in green and red."""
    tint, colours = pixels.copy(), [_colour(index) for index in range(sum(len(found) for _, found in answers))]
    masks = (mask for _, found in answers for mask in np.asarray(found.masks))
    for mask, colour in zip(masks, colours, strict=True):
        tint[mask] = colour
    image = Image.fromarray(((pixels.astype(np.uint16) + tint) // 2).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    width = max(1, max(image.size) // 400)
    scores = [(prompt, box, score) for prompt, found in answers for box, score in _rows(found)]
    for colour, (prompt, box, score) in zip(colours, scores, strict=True):
        draw.rectangle(box, outline=colour, width=width)
        draw.text(
            (box[0] + 2 * width, box[1] + 2 * width),
            f"{prompt.name} {score:.2f}",
            fill="white",
            stroke_width=1,
            stroke_fill="black",
        )
    for prompt, _ in answers:
        _draw_prompt(draw, prompt, width)
    return image


def _rows(found: Segmentation[Any]) -> list[tuple[list[float], float]]:
    return list(zip(found.boxes.tolist(), found.scores.tolist(), strict=True))


def _draw_prompt(draw: ImageDraw.ImageDraw, prompt: Prompt, width: int) -> None:
    for box, label in prompt.labelled_boxes:
        draw.rectangle(list(box), outline=_POSITIVE if label else _NEGATIVE, width=2 * width)
    radius = 4 * width
    for (x, y), label in prompt.labelled_points:
        corners = [x - radius, y - radius, x + radius, y + radius]
        draw.ellipse(corners, fill=_POSITIVE if label else _NEGATIVE, outline="white", width=width)


def _colour(index: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb((index * _GOLDEN_ANGLE) % 1, 0.9, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
