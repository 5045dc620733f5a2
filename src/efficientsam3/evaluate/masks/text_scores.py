"""Scores of text prompts: what is found, what should be, and whether the phrase is in the image at all.

cgF1 is SA-Co's (Carion et al. 2025, "SAM 3: Segment Anything with Concepts", section 5): the positive micro F1 of
masks, a mean over the IoU thresholds 0.5, 0.55, ..., 0.95, times Matthews' correlation of the decision whether a phrase
is in its image. Masks of a probability above 0.5 count; they are matched with the true ones so that the sum of their
IoUs is largest. Pairs whose objects do not all have a mask are not asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from efficientsam3.evaluate.masks.comparison import interval, resampled_sums
from efficientsam3.evaluate.masks.scores import Interval

THRESHOLDS = np.linspace(0.5, 0.95, 10)
BINS = 10
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PhraseScore:
    """How one model answered one phrase in one image."""

    model: str
    image_id: str
    phrase: str
    objects: int  # true masks; 0 where the phrase is not in the image
    found: int  # masks found
    hits: tuple[int, ...]  # matched masks at each of `THRESHOLDS`
    presence: float | None  # predicted probability that the phrase is in the image; None where the model gives none
    first_found: int  # masks that the first model found
    first_hits: tuple[int, ...]  # matches with these


@dataclass(frozen=True)
class Calibration:
    """Predicted presence against the facts, in bins of a tenth each."""

    counts: list[int]
    predicted: list[float | None]  # mean in the bin; None where it is empty
    present: list[float | None]  # share of phrases that are in their image
    error: float  # expected calibration error: the mean distance of the two, by count (Guo et al. 2017)
    brier: float  # mean squared distance of the prediction and 0 or 1


@dataclass(frozen=True)
class TextSummary:
    """One model's answers to all phrases. Shares in [0, 1]; None where there is nothing to divide by."""

    model: str
    pairs: int  # images with phrases
    positives: int  # of them, those with the phrase in the image
    recall: float | None  # of true masks, a mean over `THRESHOLDS`, like the next two
    precision: float | None  # of found masks
    positive_f1: float | None  # micro F1 of the pairs with the phrase in the image and something found
    recall_50: float | None  # at an IoU of 0.5
    precision_50: float | None
    mcc: float | None  # Matthews' correlation of "something is found" with "the phrase is in the image", in [-1, 1]
    cgf1: float | None  # positive_f1 x mcc
    interval: Interval | None  # of cgf1, over images
    agreement: float | None  # micro F1 of the masks with the first model's, a mean over `THRESHOLDS`
    calibration: Calibration | None


def match(ious: Floats) -> tuple[int, ...]:
    """How many found masks are matched with true ones at each threshold.

    Args:
        ious: (found, true).
    """
    rows, columns = linear_sum_assignment(-ious)
    hits: list[int] = (ious[rows, columns][:, None] >= THRESHOLDS).sum(0).tolist()
    return tuple(hits)


def summarise_text(scores: Sequence[PhraseScore], model: str, seed: int = 0) -> TextSummary:
    """One model's figures; the seed draws the images for the interval."""
    own = [score for score in scores if score.model == model]
    images = {image_id: place for place, image_id in enumerate(dict.fromkeys(score.image_id for score in own))}
    sums = np.zeros((len(_COLUMNS), len(images)))
    for score in own:
        sums[:, images[score.image_id]] += _counts(score)
    figures = {name: _or_none(float(value)) for name, value in _figures(sums.sum(1)).items()}
    drawn = _figures(resampled_sums(sums, seed))["cgf1"]
    return TextSummary(
        model,
        len(own),
        sum(score.objects > 0 for score in own),
        **figures,
        interval=interval(drawn) if np.isfinite(drawn).all() else None,
        calibration=calibrate([(score.presence, score.objects > 0) for score in own if score.presence is not None]),
    )


def calibrate(predictions: Sequence[tuple[float, bool]]) -> Calibration | None:
    """Compare predicted probabilities with what is so; None without any."""
    if not predictions:
        return None
    predicted, present = np.array(predictions, dtype=np.float64).T
    bins = np.minimum((predicted * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    means = [
        [float(total / count) if count else None for total, count in zip(sums, counts, strict=True)]
        for sums in (np.bincount(bins, values, BINS) for values in (predicted, present))
    ]
    pairs = zip(counts.tolist(), *means, strict=True)
    error = sum(count * abs(one - other) for count, one, other in pairs if one is not None and other is not None)
    brier = float(((predicted - present) ** 2).mean())
    return Calibration(counts.tolist(), means[0], means[1], error / len(predictions), brier)


_T = len(THRESHOLDS)
# What is summed over pairs, by column: matched, wrong, wrong in positive pairs, missed and agreeing masks at each
# threshold; both models' masks; pairs where the phrase is there and found, not there but found, ...
_HITS, _WRONG, _WRONG_IN_POSITIVE, _MISSED, _SHARED = (slice(place * _T, (place + 1) * _T) for place in range(5))
_FOUND, _FIRST_FOUND, _TP, _FP, _TN, _FN = range(5 * _T, 5 * _T + 6)
_COLUMNS = range(5 * _T + 6)


def _counts(score: PhraseScore) -> Floats:
    counts, hits = np.zeros(len(_COLUMNS)), np.array(score.hits)
    there, found = score.objects > 0, score.found > 0
    counts[_HITS], counts[_WRONG], counts[_MISSED] = hits, score.found - hits, score.objects - hits
    counts[_WRONG_IN_POSITIVE] = score.found - hits if there and found else 0
    counts[_SHARED] = score.first_hits
    counts[_FOUND], counts[_FIRST_FOUND] = score.found, score.first_found
    counts[{(True, True): _TP, (False, True): _FP, (False, False): _TN, (True, False): _FN}[there, found]] = 1
    return counts


def _figures(sums: Floats) -> dict[str, Floats]:
    """Figures of sums (columns, ...) of `_counts`; NaN where there is nothing to divide by."""
    hits, wrong, missed = sums[_HITS], sums[_WRONG], sums[_MISSED]
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, precision = hits / (hits + missed), hits / (hits + wrong)
        positive_f1 = (2 * hits / (2 * hits + sums[_WRONG_IN_POSITIVE] + missed)).mean(0)
        agreement = (2 * sums[_SHARED] / (sums[_FOUND] + sums[_FIRST_FOUND])).mean(0)
    tp, fp, tn, fn = sums[_TP], sums[_FP], sums[_TN], sums[_FN]
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    mcc = (tp * tn - fp * fn) / np.sqrt(np.where(product > 0, product, np.inf))  # 0 where one decision never varies
    return {
        "recall": recall.mean(0),
        "precision": precision.mean(0),
        "recall_50": recall[0],
        "precision_50": precision[0],
        "positive_f1": positive_f1,
        "mcc": mcc,
        "cgf1": positive_f1 * mcc,
        "agreement": agreement,
    }


def _or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None
