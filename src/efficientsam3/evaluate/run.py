"""Evaluating masks: models against ground truth and against the first of them."""

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from efficientsam3.checkpoints.training import METRICS_NAME
from efficientsam3.evaluate.masks.comparison import Difference, compare
from efficientsam3.evaluate.masks.explain import Explanation, explain
from efficientsam3.evaluate.masks.ground_truth import GroundTruth, Selection, open_ground_truth
from efficientsam3.evaluate.masks.measure import Measurement, measure
from efficientsam3.evaluate.masks.mixtures import Pair
from efficientsam3.evaluate.masks.open_models import FedPixels, last_nonrandom, named_models, named_zeros, open_models
from efficientsam3.evaluate.masks.request import EvaluationRequest
from efficientsam3.evaluate.masks.scores import Summary
from efficientsam3.evaluate.masks.segmenters import EncoderWithDecoder, Segmenter, WholeModel
from efficientsam3.evaluate.masks.text_scores import TextSummary, summarise_text
from efficientsam3.evaluate.report.feature_rows import feature_rows
from efficientsam3.evaluate.report.gallery import Gallery
from efficientsam3.evaluate.report.page import REPORT_NAME, ReportContent, render_report
from efficientsam3.runtime.device import select_device
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import to_json
from efficientsam3.runtime.own_files import check_files, write_own_text
from efficientsam3.train.metrics import read_metrics

RESULTS_NAME = "results.json"
RESULTS_VERSION = 1
EVALUATION = "an evaluation"


@dataclass(frozen=True)
class Evaluation:
    """What came out."""

    summaries: list[Summary]  # by prompt, then by model in the order given
    measurement: Measurement
    texts: list[TextSummary]  # by model, where text was asked
    explanation: Explanation | None  # where it was asked for
    seconds: float
    results: Path
    report: Path


def evaluate_masks(request: EvaluationRequest) -> Evaluation:
    """Measure, and write `results.json` and `report.html`.

    Raises:
        UserError: a model, the dataset, a run, or a combination of options is not usable; see `open_models`,
            `open_ground_truth`, `read_metrics` and `measure`.
    """
    started = time.monotonic()
    path, report = request.out / RESULTS_NAME, request.out / REPORT_NAME
    check_files((path, report), EVALUATION, request.overwrite)
    truth = open_ground_truth(request.data, request.split, request.images, request.annotators)
    if "text" in request.prompt and not truth.has_categories:
        raise UserError("--prompt text needs the categories of a COCO dataset: SA-1B's objects have no names.")
    device = select_device(request.device)
    segmenters = open_models(
        request.models, request.decoder, _fed(request), device, request.seed, request.max_hole_area
    )
    if "text" in request.prompt:
        _check_text(segmenters)
    runs = _training_curves(request)
    shown = last_nonrandom(request.models)
    pair = _pair(segmenters[0], segmenters[shown], truth) if request.explain else None
    gallery = Gallery(shown=shown)
    measurement = measure(segmenters, truth, request.prompt, _selection(request), gallery)
    names = [segmenter.name for segmenter in segmenters]
    summaries, differences = compare(
        measurement.scores, names, request.prompt, named_zeros(request.models), request.seed
    )
    texts = [summarise_text(measurement.phrases, name, request.seed) for name in names if measurement.phrases]
    explanation = None
    if pair is not None:
        prompts = [prompt for prompt in request.prompt if prompt != "text"]
        explanation = explain(pair, truth, prompts, _selection(request), measurement.scores)
    results = to_json(_results(request, measurement, summaries, differences, texts, explanation))
    write_own_text(path, results, EVALUATION, request.overwrite)
    content = ReportContent(
        title=f"Masks of {measurement.images} images",
        images=measurement.images,
        facts=_facts(request, measurement),
        models=names,
        summaries=summaries,
        texts=texts,
        explanation=explanation,
        runs=runs,
        features=feature_rows(segmenters, list(gallery.first_images.values())),
        examples=gallery.groups(),
    )
    write_own_text(report, render_report(content), EVALUATION, request.overwrite)
    return Evaluation(summaries, measurement, texts, explanation, time.monotonic() - started, path, report)


def _pair(teacher: Segmenter, student: Segmenter, truth: GroundTruth) -> Pair:
    if teacher is student:
        raise UserError("--explain needs a student beside its teacher: give the teacher first, then the student.")
    assert isinstance(teacher, EncoderWithDecoder | WholeModel), "all that `open_models` opens"
    assert isinstance(student, EncoderWithDecoder | WholeModel), "all that `open_models` opens"
    return Pair(teacher, student, truth)


def _fed(request: EvaluationRequest) -> FedPixels:
    return FedPixels(request.resize, request.mean)


def _selection(request: EvaluationRequest) -> Selection:
    return Selection(request.min_area, request.max_images, request.max_objects, request.seed, request.negatives)


def _training_curves(request: EvaluationRequest) -> dict[str, list[dict[str, float]]]:
    """By name, the epochs of the trainings that are named, and of those that a model's checkpoint comes from."""
    own = [Path(model).parent for model in named_models(request.models).values()]
    folders = [*request.run, *(folder for folder in own if (folder / METRICS_NAME).is_file())]
    return {folder.name: read_metrics(folder / METRICS_NAME) for folder in dict.fromkeys(folders)}


def _facts(request: EvaluationRequest, measurement: Measurement) -> dict[str, str]:
    chosen = {
        "of at least {} pixels": request.min_area,
        "of at most {} images": request.max_images,
        "at most {} an image": request.max_objects,
    }
    limits = [text.format(value) for text, value in chosen.items() if value]
    facts = dict(named_models(request.models))
    facts |= {} if request.decoder is None else {"decoder": os.fspath(request.decoder)}
    facts |= {
        "ground truth": f"{request.data}, {request.split}",
        "objects": ", ".join([*(limits or ["all"]), f"seed {request.seed}"]),
        **({"phrases": f"{request.negatives} of each image that are not in it"} if measurement.phrases else {}),
        "fed": f"resize {request.resize}, mean and deviation {request.mean}",
        "holes": f"filled up to {request.max_hole_area} low-resolution pixels" if request.max_hole_area else "left",
    }
    if measurement.broken or measurement.lacking or measurement.left_out:
        facts["skipped"] = (
            f"{len(measurement.broken)} broken images, {measurement.lacking} without an embedding, "
            f"{len(measurement.left_out)} objects left out"
        )
    return facts


def _check_text(segmenters: Sequence[Segmenter]) -> None:
    for segmenter in segmenters:
        if not isinstance(segmenter, WholeModel):
            raise UserError(f"--prompt text cannot be asked of {segmenter.name}: only a SAM3 has a text encoder.")


def _results(
    request: EvaluationRequest,
    measurement: Measurement,
    summaries: list[Summary],
    differences: list[Difference],
    texts: list[TextSummary],
    explanation: Explanation | None,
) -> dict[str, Any]:
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
        "prompts": list(request.prompt),
        "fed": asdict(_fed(request)),
        "max_hole_area": request.max_hole_area,
        "selection": asdict(_selection(request)),
        "summary": [asdict(summary) for summary in summaries],
        "differences": [asdict(difference) for difference in differences],
        "text": [asdict(text) for text in texts],
        "phrases": [asdict(score) for score in measurement.phrases],
        "explanation": None if explanation is None else asdict(explanation),
        "images": images,
        "broken": measurement.broken,
        "left_out": measurement.left_out,
        "without_embedding": measurement.lacking,
    }
