"""Prompting a list of pictures and writing the answers."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from efficientsam3.data.images import BrokenImageError, read_pixels
from efficientsam3.export.onnx.manifest import Variant, is_onnx_directory
from efficientsam3.predict.outputs import Answer, write_answers
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.geometry import Pixels
from efficientsam3.sam3.prompting import Promptable, Prompts

logger = logging.getLogger(__name__)


@dataclass
class PredictReport:
    """What was written, and which pictures could not be read."""

    written: dict[Path, int] = field(default_factory=dict)  # JSON file -> objects found
    broken: list[str] = field(default_factory=list)


def predict_files(
    model_path: Path,
    pictures: Sequence[Path],
    prompts: Prompts,
    output_dir: Path,
    *,
    threshold: float = 0.5,
    device: str = "auto",
    variant: Variant | None = None,
) -> PredictReport:
    """Encode each picture once, answer all prompts, and write overlay, masks and JSON for it.

    Args:
        model_path: whatever `EfficientSAM3.from_pretrained` takes, or a directory that `export-onnx` wrote; then
            PyTorch is not loaded.
        pictures: see `data.find.find_images`.
        prompts: asked of every picture.
        output_dir: where to.
        threshold: lowest score that the detector's answers need.
        device: where PyTorch computes: auto, cpu, mps or cuda.
        variant: of an ONNX directory's image encoder; None for float32.

    Raises:
        UserError: no prompt, no model at the path, a box outside a picture, or no picture could be read.
    """
    if not prompts.detections and not prompts.is_interactive:
        raise UserError("No prompt was given: add --text, --box, --point or --object-box.")
    if prompts.points and not any(prompts.labels) and prompts.object_box is None:
        raise UserError("Only negative points were given: add a --point on the object.")
    if not 0 <= threshold <= 1:
        raise UserError(f"--threshold {threshold} is no probability: give a number from 0 to 1.")
    model = _open_model(model_path, device, variant)
    report = PredictReport()
    stems = Counter(picture.stem for picture in pictures)
    for picture in pictures:
        try:
            pixels = read_pixels(picture)
        except BrokenImageError as error:
            logger.warning("%s", error)
            report.broken.append(str(picture))
            continue
        image = model.encode(pixels)
        answers: list[Answer] = []
        for text in prompts.detections:
            answer = image.segment(text, boxes=prompts.boxes, box_labels=prompts.box_labels, threshold=threshold)
            answers.append((text or "box", answer))
        if prompts.is_interactive:
            answer = image.segment(points=prompts.points, labels=prompts.labels, object_box=prompts.object_box)
            answers.append(("points" if prompts.points else "object box", answer))
        name = picture.stem if stems[picture.stem] == 1 else picture.name
        written = write_answers(output_dir, name, picture, pixels, answers, prompts)
        report.written[written] = sum(len(found) for _, found in answers)
    if not report.written:
        raise UserError(f"None of the {len(pictures)} pictures could be read, such as {report.broken[0]}: check them.")
    return report


class _Model(Protocol):
    def encode(self, picture: Pixels) -> Promptable[Any]: ...


def _open_model(path: Path, device: str, variant: Variant | None) -> _Model:
    if is_onnx_directory(path):
        from efficientsam3.predict.onnx_sam3 import OnnxSAM3

        if device not in {"auto", "cpu"}:
            raise UserError(f"--device {device}: ONNX graphs run on the CPU here, leave it out or give a merged model.")
        return OnnxSAM3.from_pretrained(path, variant)
    if variant is not None:
        raise UserError(f"--variant {variant} is of a directory that export-onnx wrote, and {path} is none.")
    from efficientsam3.sam3.efficientsam3 import EfficientSAM3

    return EfficientSAM3.from_pretrained(path, device)  # type: ignore[arg-type]
