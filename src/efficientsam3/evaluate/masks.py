"""Evaluating masks: models against ground truth and against the first of them."""

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from efficientsam3.data.split import Split
from efficientsam3.evaluate.ground_truth import GroundTruth, Selection, open_ground_truth
from efficientsam3.evaluate.measure import Measurement, measure
from efficientsam3.evaluate.open_models import FedPixels, open_models
from efficientsam3.evaluate.prompts import PromptKind
from efficientsam3.evaluate.scores import Summary, summarise
from efficientsam3.evaluate.segmenters import Segmenter, WholeModel
from efficientsam3.runtime.device import DeviceName, select_device
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import write_json

RESULTS_NAME = "results.json"
RESULTS_VERSION = 1


@dataclass(frozen=True)
class EvaluationRequest:
    """What is measured on what."""

    models: Sequence[str]  # see open_models
    data: Path  # SA-1B folder, COCO folder, or COCO instances file
    prompts: Sequence[PromptKind]
    split: Split = "val"
    images: Path | None = None  # pictures of an instances file
    decoder: Path | None = None
    fed: FedPixels = field(default_factory=FedPixels)
    selection: Selection = field(default_factory=Selection)
    device: DeviceName = "auto"


@dataclass(frozen=True)
class Evaluation:
    """What came out."""

    summaries: list[Summary]  # by prompt, then by model in the order given
    measurement: Measurement
    seconds: float
    results: Path


def evaluate_masks(request: EvaluationRequest, output_dir: Path) -> Evaluation:
    """Measure, and write `results.json`.

    Raises:
        UserError: a model, the dataset, or a combination of options is not usable; see `open_models`,
            `open_ground_truth` and `measure`.
    """
    started = time.monotonic()
    truth = open_ground_truth(request.data, request.split, request.images)
    device = select_device(request.device)
    segmenters = open_models(request.models, request.decoder, request.fed, device, request.selection.seed)
    _check_prompts(request.prompts, segmenters, truth)
    measurement = measure(segmenters, truth, request.prompts, request.selection)
    summaries = [
        summarise(measurement.scores, segmenter.name, prompt) for prompt in request.prompts for segmenter in segmenters
    ]
    path = output_dir / RESULTS_NAME
    write_json(path, _results(request, measurement, summaries))
    return Evaluation(summaries, measurement, time.monotonic() - started, path)


def _check_prompts(prompts: Sequence[PromptKind], segmenters: Sequence[Segmenter], truth: GroundTruth) -> None:
    if "text" not in prompts:
        return
    if not truth.has_categories:
        raise UserError("--prompt text needs the categories of a COCO dataset: SA-1B's objects have no names.")
    for segmenter in segmenters:
        if not isinstance(segmenter, WholeModel):
            raise UserError(f"--prompt text cannot be asked of {segmenter.name}: only a SAM3 has a text encoder.")


def _results(request: EvaluationRequest, measurement: Measurement, summaries: list[Summary]) -> dict[str, Any]:
    images: dict[str, list[dict[str, Any]]] = {}
    for score in measurement.scores:
        row = asdict(score)
        images.setdefault(row.pop("image_id"), []).append(row)
    return {
        "format_version": RESULTS_VERSION,
        "data": os.fspath(request.data),
        "split": request.split,
        "models": list(request.models),
        "decoder": None if request.decoder is None else os.fspath(request.decoder),
        "prompts": list(request.prompts),
        "fed": asdict(request.fed),
        "selection": asdict(request.selection),
        "summary": [asdict(summary) for summary in summaries],
        "images": images,
        "broken": measurement.broken,
        "without_embedding": measurement.lacking,
    }
