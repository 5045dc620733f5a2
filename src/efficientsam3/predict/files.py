"""Prompting a list of images and writing the answers."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from efficientsam3.data.images import BrokenImageError, read_pixels
from efficientsam3.export.onnx.manifest import Variant, is_onnx_directory
from efficientsam3.predict.outputs import write_answers
from efficientsam3.predict.places import check_places, plan_places
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.holes import MAX_HOLE_AREA
from efficientsam3.sam3.promptable import Pixels, Promptable
from efficientsam3.sam3.prompts import ObjectPrompt, Prompt

logger = logging.getLogger(__name__)


@dataclass
class PredictReport:
    """What was written, and which images could not be read."""

    written: dict[Path, int] = field(default_factory=dict)  # JSON file -> objects found
    broken: list[str] = field(default_factory=list)


def predict_files(
    model_path: Path,
    images: Sequence[Path],
    prompts: Sequence[Prompt],
    output_dir: Path,
    *,
    threshold: float = 0.5,
    max_hole_area: int = MAX_HOLE_AREA,
    device: str = "auto",
    variant: Variant | None = None,
    overwrite: bool = False,
) -> PredictReport:
    """Encode each image once, answer all prompts, and write overlay, masks and JSON for it.

    Args:
        model_path: whatever `EfficientSAM3.from_pretrained` takes, or a directory that `export-onnx` wrote; then
            PyTorch is not loaded.
        images: see `data.find.find_images`.
        prompts: asked of every image.
        output_dir: where to, see `places.plan_places`.
        threshold: lowest score that the detector's answers need.
        max_hole_area: see `Promptable.segment`.
        device: where PyTorch computes: auto, cpu, mps or cuda.
        variant: of an ONNX directory's image encoder; None for float32.
        overwrite: whether to replace files that the program did not write, and answers for other images.

    Raises:
        UserError: there is no prompt or no model, files of the user's are in the way, a box lies outside an image, or
            no image could be read.
    """
    if not prompts:
        raise UserError("No prompt was given: add --text, --box, --point or --object-box.")
    if any(isinstance(prompt, ObjectPrompt) and not any(prompt.labels) and prompt.box is None for prompt in prompts):
        raise UserError("Only negative points were given: add a --point on the object.")
    if not 0 <= threshold <= 1:
        raise UserError(f"--threshold {threshold} is not a probability: give a number from 0 to 1.")
    places = plan_places(images, output_dir)
    if not overwrite:
        check_places(places.values())
    model = _open_model(model_path, device, variant)
    report = PredictReport()
    for path, place in places.items():
        try:
            pixels = read_pixels(path)
        except BrokenImageError as error:
            logger.warning("%s", error)
            report.broken.append(str(path))
            continue
        image = model.encode(pixels)
        answers = [(prompt, image.ask(prompt, threshold=threshold, max_hole_area=max_hole_area)) for prompt in prompts]
        written = write_answers(place, path, pixels, answers, overwrite)
        report.written[written] = sum(len(found) for _, found in answers)
    if not report.written:
        raise UserError(f"None of the {len(images)} images could be read, such as {report.broken[0]}: check them.")
    return report


class _Model(Protocol):
    def encode(self, image: Pixels) -> Promptable[Any]: ...


def _open_model(path: Path, device: str, variant: Variant | None) -> _Model:
    if is_onnx_directory(path):
        from efficientsam3.predict.onnx_sam3 import OnnxSAM3

        if device not in {"auto", "cpu"}:
            raise UserError(f"--device {device}: ONNX graphs run on the CPU here, leave it out or give a merged model.")
        return OnnxSAM3.from_pretrained(path, variant)
    if variant is not None:
        raise UserError(f"--variant {variant} belongs to what export-onnx wrote, and {path} is another model.")
    from efficientsam3.sam3.efficientsam3 import EfficientSAM3

    return EfficientSAM3.from_pretrained(path, device)
