"""Asking every model for the phrases of an image."""

import math
from collections.abc import Iterator, Sequence

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


def choose_phrases(image: TrueImage, selection: Selection) -> list[TruePhrase]:
    """What is asked of an image: all that its annotation asks, and some of what is surely not in it.

    The same for all models, and not dependent on other images; phrases that are not exhaustively annotated are left
    out, as in SA-Co.
    """
    asked = [phrase for phrase in image.phrases if phrase.exhaustive]
    generator = np.random.default_rng(augmentation_seed(selection.seed, f"{image.image_id}/negatives"))
    chosen = generator.permutation(len(image.absent))[: selection.negatives]
    return asked + [TruePhrase(image.absent[place]) for place in np.sort(chosen)]


def score_phrases(
    segmenters: Sequence[Segmenter], asks: Sequence[Ask], image: TrueImage, selection: Selection
) -> Iterator[PhraseScore]:
    """Every model's answer to every phrase.

    Raises:
        PromptError: a phrase is longer than the text encoder takes.
    """
    for phrase in choose_phrases(image, selection):
        first: list[torch.Tensor] | None = None
        for segmenter, ask in zip(segmenters, asks, strict=True):
            answer = ask(ConceptPrompt(phrase.text))
            masks = list(answer.masks)
            first = masks if first is None else first
            objects, hits = _best_truth(masks, phrase)
            yield PhraseScore(
                segmenter.name,
                image.image_id,
                phrase.text,
                objects,
                len(masks),
                hits,
                answer.presence,
                len(first),
                match(iou_matrix(masks, first)),
            )


def iou_matrix(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> npt.NDArray[np.float64]:
    """IoUs (N, M) of masks (H, W) bool."""
    areas = [[int(mask.sum()) for mask in masks] for masks in (one, other)]
    ious = np.zeros((len(one), len(other)))
    for row, mask in enumerate(one):
        for column, reference in enumerate(other):
            shared = int((mask & reference).sum())
            if shared:
                ious[row, column] = shared / (areas[0][row] + areas[1][column] - shared)
    return ious


def _best_truth(masks: list[torch.Tensor], phrase: TruePhrase) -> tuple[int, tuple[int, ...]]:
    """Objects and hits with the annotator that is most favourable, as in SA-Co: by the mean F1 over thresholds."""
    found = []
    for truth in (phrase.masks, *phrase.others):
        hits = match(iou_matrix(masks, [_to_mask(rle) for rle in truth]))
        found.append((_favour(hits, len(masks), len(truth)), len(truth), hits))
    _, objects, hits = max(found, key=lambda item: item[0])
    return objects, hits


def _favour(hits: tuple[int, ...], found: int, objects: int) -> float:
    if found == objects == 0:
        return math.inf
    precision, recall = (np.array(hits) / (count + _EPSILON) for count in (found, objects))
    return float((2 * precision * recall / (precision + recall + _EPSILON)).mean())


def _to_mask(rle: Rle) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(rle.mask()))
