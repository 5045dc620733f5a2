"""Asking every model for the phrases of an image."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from efficientsam3.data.annotations.rle import Rle
from efficientsam3.data.augment import augmentation_seed
from efficientsam3.evaluate.masks.ground_truth import Selection, TrueImage, TruePhrase
from efficientsam3.evaluate.masks.segmenters import Ask, Segmenter
from efficientsam3.evaluate.masks.text_scores import PhraseScore, match
from efficientsam3.sam3.prompts import ConceptPrompt

# In SA-Co's evaluator, where it decides between annotators with whom the F1 is the same.
_EPSILON = 1e-4
_CHUNK = 1 << 16  # pixels that are compared at a time


def choose_phrases(image: TrueImage, selection: Selection) -> list[TruePhrase]:
    """What is asked of an image: all that its annotation asks, and some of what is surely not in it.

    The same for all models, and not dependent on other images; phrases that are not exhaustively annotated are left
    out, as in SA-Co.
    """
    asked = [phrase for phrase in image.phrases if phrase.exhaustive]
    generator = np.random.default_rng(augmentation_seed(selection.seed, f"{image.image_id}/negatives"))
    chosen = generator.permutation(len(image.absent))[: selection.negatives]
    return asked + [TruePhrase(image.absent[place]) for place in np.sort(chosen)]


def score_phrase(
    segmenters: Sequence[Segmenter], asks: Sequence[Ask], image_id: str, phrase: TruePhrase
) -> list[PhraseScore]:
    """Every model's answer to one phrase.

    Raises:
        PromptError: the phrase is longer than a text encoder takes.
    """
    answers = [ask(ConceptPrompt(phrase.text)) for ask in asks]
    size = answers[0].masks.shape[1:]
    truths = [_to_masks(rles, size) for rles in (phrase.masks, *phrase.others)]
    first = answers[0].masks
    scores = []
    for segmenter, answer in zip(segmenters, answers, strict=True):
        found = len(answer.masks)
        rated = [(len(truth), match(iou_matrix(answer.masks, truth))) for truth in truths]
        objects, hits = max(rated, key=lambda pair: _favour(pair[1], found, pair[0]))
        agreeing = match(iou_matrix(answer.masks, first))
        scores.append(
            PhraseScore(
                segmenter.name, image_id, phrase.text, objects, found, hits, answer.presence, len(first), agreeing
            )
        )
    return scores


def iou_matrix(one: torch.Tensor, other: torch.Tensor) -> npt.NDArray[np.float64]:
    """IoUs (N, M) of masks (N, H, W) and (M, H, W) bool; 0 where both are empty."""
    rows, columns = one.flatten(1), other.flatten(1)  # [N, P], [M, P]
    areas = rows.sum(1).double(), columns.sum(1).double()
    shared = torch.zeros(len(one), len(other), dtype=torch.float64)
    for start in range(0, rows.shape[1], _CHUNK):
        chunk = slice(start, start + _CHUNK)
        shared += rows[:, chunk].float() @ columns[:, chunk].float().T  # exact: float32 counts further than a chunk
    unions = areas[0][:, None] + areas[1] - shared
    ious: npt.NDArray[np.float64] = (shared / unions.clamp(min=1)).numpy()
    return ious


def _favour(hits: tuple[int, ...], found: int, objects: int) -> float:
    if found == objects == 0:
        return math.inf
    precision, recall = (np.array(hits) / (count + _EPSILON) for count in (found, objects))
    return float((2 * precision * recall / (precision + recall + _EPSILON)).mean())


def _to_masks(rles: Sequence[Rle], size: torch.Size) -> torch.Tensor:
    masks = [torch.from_numpy(np.ascontiguousarray(rle.mask())) for rle in rles]
    return torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool)
