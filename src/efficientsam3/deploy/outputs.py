"""What `predict` writes for a picture: an overlay, one PNG per mask, and COCO RLE with boxes and scores."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from torchvision.utils import draw_segmentation_masks

from efficientsam3.deploy.predict import Box, Point, Segmentation
from efficientsam3.runtime.files import atomic_path, write_json

_POSITIVE, _NEGATIVE = (0, 200, 0), (220, 0, 0)
_GOLDEN_ANGLE = 0.618034  # of the hue circle: neighbours in a list get colours that are far apart


@dataclass(frozen=True)
class Prompts:
    """What is asked of every picture, in pixels."""

    texts: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    box_labels: tuple[int, ...] = ()
    points: tuple[Point, ...] = ()
    labels: tuple[int, ...] = ()
    object_box: Box | None = None

    @property
    def detections(self) -> tuple[str | None, ...]:
        """The phrases that the detector is asked for; None for boxes alone."""
        return self.texts or ((None,) if self.boxes else ())

    @property
    def is_interactive(self) -> bool:
        """Whether the interactive predictor is asked."""
        return bool(self.points) or self.object_box is not None


Answer = tuple[str, Segmentation]  # what was asked, and what came


def encode_rle(mask: torch.Tensor) -> dict[str, Any]:
    """COCO's run-length encoding of a mask (H, W) bool, compressed, as JSON."""
    encoded = coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


def write_answers(
    folder: Path, name: str, source: Path, pixels: torch.Tensor, answers: Sequence[Answer], prompts: Prompts
) -> Path:
    """Write `<name>_overlay.png`, `<name>_mask_NNN.png` and `<name>.json`; returns the path of the JSON.

    Args:
        folder: where to.
        name: start of the files' names.
        source: the picture's path, for the record.
        pixels: (3, H, W) uint8 RGB.
        answers: in the order of the masks' numbers.
        prompts: drawn on the overlay.

    Raises:
        UserError: the folder cannot be written to.
    """
    objects: list[dict[str, Any]] = []
    for prompt, found in answers:
        for mask, box, score in zip(found.masks, found.boxes.tolist(), found.scores.tolist(), strict=True):
            file = f"{name}_mask_{len(objects):03d}.png"
            save_png(folder / file, Image.fromarray(mask.numpy().astype(np.uint8) * 255))
            x0, y0, x1, y1 = box
            objects.append(
                {
                    "prompt": prompt,
                    "score": score,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],  # COCO's xywh, pixels
                    "segmentation": encode_rle(mask),
                    "mask": file,
                }
            )
    _remove_stale_masks(folder, name, len(objects))
    save_png(folder / f"{name}_overlay.png", draw_overlay(pixels, answers, prompts))
    record = {"image": str(source), "height": pixels.shape[1], "width": pixels.shape[2], "objects": objects}
    write_json(folder / f"{name}.json", record)
    return folder / f"{name}.json"


def _remove_stale_masks(folder: Path, name: str, count: int) -> None:
    """Masks of an earlier run that found more would look like answers of this one."""
    index = count
    while (stale := folder / f"{name}_mask_{index:03d}.png").is_file():
        stale.unlink()
        index += 1


def save_png(path: Path, image: Image.Image) -> None:
    """Write a PNG, atomically.

    Raises:
        UserError: it cannot be written.
    """
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def draw_overlay(pixels: torch.Tensor, answers: Sequence[Answer], prompts: Prompts) -> Image.Image:
    """The picture with each object in its own colour, its box and score, and the prompts in green and red."""
    masks = torch.cat([found.masks for _, found in answers]) if answers else torch.zeros(0, *pixels.shape[1:]).bool()
    colours = [_colour(index) for index in range(len(masks))]
    drawn = draw_segmentation_masks(pixels, masks, alpha=0.5, colors=colours) if len(masks) else pixels
    image = Image.fromarray(drawn.permute(1, 2, 0).numpy())
    draw = ImageDraw.Draw(image)
    width = max(1, max(image.size) // 400)
    scores = [(prompt, box, score) for prompt, found in answers for box, score in _rows(found)]
    for colour, (prompt, box, score) in zip(colours, scores, strict=True):
        draw.rectangle(box, outline=colour, width=width)
        draw.text(
            (box[0] + 2 * width, box[1] + 2 * width),
            f"{prompt} {score:.2f}",
            fill="white",
            stroke_width=1,
            stroke_fill="black",
        )
    _draw_prompts(draw, prompts, width)
    return image


def _rows(found: Segmentation) -> list[tuple[list[float], float]]:
    return list(zip(found.boxes.tolist(), found.scores.tolist(), strict=True))


def _draw_prompts(draw: ImageDraw.ImageDraw, prompts: Prompts, width: int) -> None:
    boxes = [*zip(prompts.boxes, prompts.box_labels, strict=True)]
    boxes += [(prompts.object_box, 1)] if prompts.object_box is not None else []
    for box, label in boxes:
        draw.rectangle(list(box), outline=_POSITIVE if label else _NEGATIVE, width=2 * width)
    radius = 4 * width
    for (x, y), label in zip(prompts.points, prompts.labels, strict=True):
        corners = [x - radius, y - radius, x + radius, y + radius]
        draw.ellipse(corners, fill=_POSITIVE if label else _NEGATIVE, outline="white", width=width)


def _colour(index: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb((index * _GOLDEN_ANGLE) % 1, 0.9, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
