"""`report.html`: an evaluation on one page that needs nothing but itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

import efficientsam3
from efficientsam3.evaluate.masks.explain import Explanation
from efficientsam3.evaluate.masks.objects import PromptKind
from efficientsam3.evaluate.masks.scores import SIZES, Summary
from efficientsam3.evaluate.masks.text_scores import TextSummary
from efficientsam3.evaluate.report.charts import calibration_chart, metric_charts
from efficientsam3.evaluate.report.feature_rows import FeatureRow
from efficientsam3.evaluate.report.figures import Metrics
from efficientsam3.evaluate.report.gallery import Example
from efficientsam3.evaluate.report.overlays import data_uri, example_images, thumbnail
from efficientsam3.evaluate.report.score_tables import (
    calibration_table,
    explanation_tables,
    figure,
    percent,
    score_tables,
    text_table,
)
from efficientsam3.sam3.prompts import ConceptPrompt

REPORT_NAME = "report.html"
_TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class ReportContent:
    """Everything that the page shows."""

    title: str
    images: int  # measured
    facts: Mapping[str, str]  # what was measured, and how
    models: Sequence[str]
    summaries: Sequence[Summary]
    texts: Sequence[TextSummary]
    explanation: Explanation | None
    runs: Mapping[str, Sequence[Metrics]]  # trainings' epochs, by name
    features: Sequence[FeatureRow]
    examples: Mapping[tuple[PromptKind, str], Sequence[Example]]


def render_report(content: ReportContent) -> str:
    """The page, images and all.

    Raises:
        BrokenImageError: an image has been removed since it was measured.
    """
    # Names of models and files come from the user; autoescape keeps them text.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = resources.files("efficientsam3.evaluate.report").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(
        title=content.title,
        version=efficientsam3.__version__,
        facts=content.facts,
        models=content.models,
        tables=score_tables(content.summaries, content.images),
        bars=_bars(content.summaries),
        text=_text(content.texts) if content.texts else None,
        explained=[] if content.explanation is None else _explained(content.explanation),
        charts=metric_charts(content.runs) if content.runs else [],
        features=[_feature_cells(row) for row in content.features],
        groups=[
            {"prompt": prompt, "title": title, "examples": [_example_cells(example) for example in examples]}
            for (prompt, title), examples in content.examples.items()
        ],
    )


def _bars(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """For each prompt and size, a bar for each model."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for summary in summaries:
        values = {"all": (summary.miou, summary.objects)}
        values |= {size: (summary.by_size[size], summary.counts[size]) for size in SIZES}
        for size, (value, count) in values.items():
            bar = {"model": summary.model, "value": value, "text": figure(value), "count": count}
            groups.setdefault((summary.prompt, size), []).append(bar)
    return [{"prompt": prompt, "size": size, "bars": bars} for (prompt, size), bars in groups.items()]


def _text(texts: Sequence[TextSummary]) -> dict[str, Any]:
    calibrated = [text for text in texts if text.calibration is not None]
    chart = calibration_chart(calibrated) if calibrated else None
    return {"table": text_table(texts), "chart": chart, "bins": calibration_table(calibrated)}


def _explained(explanation: Explanation) -> list[dict[str, Any]]:
    """For each prompt its table, and for each family a bar for each part."""
    shown = []
    for gap, table in zip(explanation.gaps, explanation_tables(explanation), strict=True):
        families: dict[str, list[dict[str, Any]]] = {}
        for row in explanation.parts:
            if row.prompt == gap.prompt and row.share is not None:
                bar = {"part": row.part, "value": min(max(row.share, 0), 1), "text": percent(row.share)}
                families.setdefault(row.family, []).append(bar)
        shown.append({"prompt": gap.prompt, "table": table, "families": families})
    return shown


def _feature_cells(row: FeatureRow) -> list[dict[str, Any]]:
    height, width = row.pixels.shape[:2]
    cells = [{"caption": row.image_id, "uri": data_uri(thumbnail(row.pixels)), "ratio": f"{width}/{height}"}]
    for features in row.features:
        caption = features.model if features.cosine is None else f"{features.model}, cosine {features.cosine:z.2f}"
        uri = data_uri(Image.fromarray(features.colours), "PNG")
        cells.append({"caption": caption, "uri": uri, "ratio": f"{width}/{height}"})
    return cells


def _example_cells(example: Example) -> list[dict[str, str]]:
    named = isinstance(example.prompt, ConceptPrompt)
    captions = [f"{example.image_id}: {example.prompt.name}" if named else example.image_id]
    captions += ["ground truth", *(f"{score.model} {score.iou:.2f}" for score in example.scores)]
    uris = [data_uri(image) for image in example_images(example)]
    return [{"caption": caption, "uri": uri} for caption, uri in zip(captions, uris, strict=True)]
