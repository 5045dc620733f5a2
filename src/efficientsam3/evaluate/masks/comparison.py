"""Models compared: shares of the teacher's mIoU, and how sure that is, by resampling images.

Objects of one image are not independent, so images are drawn, with replacement (the percentile bootstrap, Efron 1979);
the same images for all models, so that differences are paired.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from efficientsam3.evaluate.masks.objects import PromptKind
from efficientsam3.evaluate.masks.scores import Interval, ObjectScore, Summary, summarise

SAMPLES = 2000
_LEVEL = 95  # per cent
_CHUNK = 1 << 22  # numbers drawn at a time
Means = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """How much higher one model's mIoU is than another's, for the same objects."""

    prompt: PromptKind
    model: str
    other: str
    difference: float
    interval: Interval | None


def compare(
    scores: Sequence[ObjectScore],
    models: Sequence[str],
    prompts: Sequence[PromptKind],
    zeros: str | None = None,
    seed: int = 0,
) -> tuple[list[Summary], list[Difference]]:
    """Summaries by prompt, then by model, and the differences of every two models by prompt.

    Args:
        scores: of all models, each for the same objects.
        models: the first is the teacher.
        prompts: what was asked.
        zeros: the model whose embeddings are zeros, if it is among them.
        seed: draws the images.
    """
    summaries: list[Summary] = []
    differences: list[Difference] = []
    for prompt in prompts:
        own = [summarise(scores, model, prompt) for model in models]
        if not own[0].objects:
            summaries += own
            continue
        means, drawn = means_of(scores, models, prompt, seed)
        nothing = None if zeros is None else models.index(zeros)
        for place, summary in enumerate(own):
            summaries.append(
                replace(
                    summary,
                    interval=interval(drawn[place]),
                    share=_ratio(means[place], means[0]),
                    share_interval=_interval_of_ratio(drawn[place], drawn[0]) if place else None,
                    **_from_zeros(means, drawn, place, nothing),
                )
            )
        for place, model in enumerate(models):
            for before, other in enumerate(models[:place]):
                gained = interval(drawn[place] - drawn[before])
                differences.append(Difference(prompt, model, other, float(means[place] - means[before]), gained))
    return summaries, differences


def interval(drawn: Means) -> Interval | None:
    """The 95 % interval of a statistic that was computed for each resampling; None where images are too few."""
    if not len(drawn):
        return None
    low, high = np.percentile(drawn, [(100 - _LEVEL) / 2, (100 + _LEVEL) / 2])
    return float(low), float(high)


def resampled_means(sums: Means, counts: Means, seed: int, samples: int = SAMPLES) -> Means:
    """Means over the objects of images that are drawn with replacement, as many as there are.

    Args:
        sums: (M, N) of each model's values over each image's objects.
        counts: (N,) objects of each image, above 0.
        seed: draws the images.
        samples: how often.

    Returns:
        (M, samples); (M, 0) for one image, which says nothing of others.
    """
    drawn = resampled_sums(np.vstack([sums, counts]), seed, samples)
    means: Means = drawn[:-1] / drawn[-1]
    return means


def resampled_sums(values: Means, seed: int, samples: int = SAMPLES) -> Means:
    """Sums over images that are drawn with replacement, as many as there are.

    Args:
        values: (K, N) of each image.
        seed: draws the images.
        samples: how often.

    Returns:
        (K, samples); (K, 0) for fewer than two images, which say nothing of others.
    """
    number = values.shape[1]
    if number < 2:
        return np.zeros((len(values), 0))
    generator, chances = np.random.default_rng(seed), np.full(number, 1 / number)
    chunk = max(1, _CHUNK // number)
    parts = [
        values @ generator.multinomial(number, chances, size=min(chunk, samples - start)).T
        for start in range(0, samples, chunk)
    ]
    return np.concatenate(parts, axis=1)


def means_of(
    scores: Sequence[ObjectScore], models: Sequence[str], prompt: PromptKind, seed: int
) -> tuple[Means, Means]:
    """Each model's mIoU (M,), and for each resampling (M, samples)."""
    asked = [score for score in scores if score.prompt == prompt]
    images = {image_id: place for place, image_id in enumerate(dict.fromkeys(score.image_id for score in asked))}
    rows = {model: place for place, model in enumerate(models)}
    sums, counts = np.zeros((len(models), len(images))), np.zeros(len(images))
    for score in asked:
        sums[rows[score.model], images[score.image_id]] += score.iou
        counts[images[score.image_id]] += score.model == models[0]
    return sums.sum(1) / counts.sum(), resampled_means(sums, counts, seed)


def _ratio(value: float, whole: float) -> float | None:
    return float(value / whole) if whole > 0 else None


def _interval_of_ratio(values: Means, wholes: Means) -> Interval | None:
    return interval(values / wholes) if (wholes > 0).all() else None


def _from_zeros(means: Means, drawn: Means, place: int, zeros: int | None) -> dict[str, Any]:
    if zeros is None:
        return {}
    return {
        "from_zeros": _ratio(means[place] - means[zeros], means[0] - means[zeros]),
        "from_zeros_interval": _interval_of_ratio(drawn[place] - drawn[zeros], drawn[0] - drawn[zeros]),
    }
