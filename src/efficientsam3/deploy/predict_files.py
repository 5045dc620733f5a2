"""Prompting a list of pictures and writing the answers."""

import glob
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from efficientsam3.data.images import BrokenImageError, read_pixels
from efficientsam3.deploy.onnx.manifest import Variant, is_onnx_directory
from efficientsam3.deploy.outputs import Answer, write_answers
from efficientsam3.deploy.picture import Pixels
from efficientsam3.deploy.prompting import Promptable, Prompts
from efficientsam3.runtime.errors import UserError

logger = logging.getLogger(__name__)
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass
class PredictReport:
    """What was written, and which pictures could not be read."""

    written: dict[Path, int] = field(default_factory=dict)  # JSON file -> objects found
    broken: list[str] = field(default_factory=list)


def find_pictures(patterns: Iterable[str]) -> list[Path]:
    """Files, the pictures in folders, and what globs match, in the order given, each once.

    Raises:
        UserError: a pattern stands for nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            matches = sorted(child for child in path.iterdir() if child.suffix.lower() in PICTURE_SUFFIXES)
        else:
            matches = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
        if not matches:
            raise UserError(f"{pattern} is no picture and holds none ({', '.join(PICTURE_SUFFIXES)}): check the path.")
        found |= dict.fromkeys(matches)
    return list(found)


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
        pictures: see `find_pictures`.
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
        from efficientsam3.deploy.onnx.predictor import OnnxSAM3

        if device not in {"auto", "cpu"}:
            raise UserError(f"--device {device}: ONNX graphs run on the CPU here, leave it out or give a merged model.")
        return OnnxSAM3.from_pretrained(path, variant)
    if variant is not None:
        raise UserError(f"--variant {variant} is of a directory that export-onnx wrote, and {path} is none.")
    from efficientsam3.deploy.predict import EfficientSAM3

    return EfficientSAM3.from_pretrained(path, device)  # type: ignore[arg-type]
