"""Text figures on predictions whose figures are known."""

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from efficientsam3.data.annotations.rle import Rle
from efficientsam3.evaluate.masks.ground_truth import Selection, TrueImage, TruePhrase
from efficientsam3.evaluate.masks.phrases import choose_phrases, iou_matrix, score_phrase
from efficientsam3.evaluate.masks.segmenters import to_rle
from efficientsam3.evaluate.masks.text_scores import THRESHOLDS, PhraseScore, calibrate, match, summarise_text
from efficientsam3.sam3.decoders import Answer
from efficientsam3.sam3.prompts import ConceptPrompt, Prompt


def score(image: str, objects: int, found: int, hits: int | list[int], presence: float | None = None) -> PhraseScore:
    """`hits`: at all thresholds, or at each."""
    at_each = tuple([hits] * 10 if isinstance(hits, int) else hits)
    return PhraseScore("model", image, "dog", objects, found, at_each, presence, found, (found,) * 10)


def test_figures_by_hand() -> None:
    scores = [
        score("a", 3, 2, [2] * 5 + [1] * 5),  # there and found; at higher thresholds one mask is too bad
        score("b", 2, 0, 0),  # there, nothing found
        score("c", 0, 1, 0),  # not there, something found
        score("d", 0, 0, 0),
        score("e", 0, 0, 0),
        score("f", 1, 1, 1),
    ]
    summary = summarise_text(scores, "model")
    assert (summary.pairs, summary.positives) == (6, 3)
    # Matched 3 or 2 of 6 objects; 4 masks are found, of which 3 where the phrase is there.
    assert summary.recall == pytest.approx((3 / 6 + 2 / 6) / 2)
    assert summary.precision == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert (summary.recall_50, summary.precision_50) == (0.5, 0.75)
    # F1 = 2 TP / (2 TP + FP + FN): 6 / (6 + 0 + 3) and 4 / (4 + 1 + 4).
    assert summary.positive_f1 == pytest.approx((6 / 9 + 4 / 9) / 2)
    # TP 2, FN 1, FP 1, TN 2.
    assert summary.mcc == pytest.approx((2 * 2 - 1 * 1) / (3 * 3 * 3 * 3) ** 0.5)
    assert summary.cgf1 == pytest.approx((5 / 9) * (1 / 3))
    assert summary.agreement == 1
    assert summary.interval is not None or summary.calibration is None


def test_what_cannot_be_divided_is_nothing() -> None:
    empty = summarise_text([score("a", 0, 0, 0)], "model")
    assert (empty.recall, empty.precision, empty.positive_f1, empty.cgf1, empty.mcc) == (None, None, None, None, 0)
    assert (empty.agreement, empty.interval, empty.calibration) == (None, None, None)
    blind = summarise_text([score("a", 1, 0, 0), score("b", 0, 0, 0)], "model")
    assert (blind.recall, blind.positive_f1, blind.mcc, blind.cgf1) == (0, 0, 0, 0), "never finding says nothing"
    perfect = summarise_text([score("a", 2, 2, 2), score("b", 0, 0, 0)], "model")
    assert (perfect.recall, perfect.precision, perfect.mcc, perfect.cgf1) == (1, 1, 1, 1)


def test_calibration_by_hand() -> None:
    found = calibrate([(0.05, False), (0.08, True), (0.95, True), (1.0, True), (0.42, False)])
    assert found is not None
    assert found.counts == [2, 0, 0, 0, 1, 0, 0, 0, 0, 2]
    assert found.predicted[0] == pytest.approx(0.065)
    assert (found.present[0], found.present[4], found.present[9], found.present[1]) == (0.5, 0, 1, None)
    assert found.error == pytest.approx((2 * 0.435 + 0.42 + 2 * 0.025) / 5)
    assert found.brier == pytest.approx((0.05**2 + 0.92**2 + 0.05**2 + 0.42**2) / 5)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 4), st.integers(0, 4), st.randoms(use_true_random=False))
def test_matching_has_the_largest_sum_of_ious(found: int, true: int, random) -> None:
    ious = np.array([random.random() for _ in range(found * true)]).reshape(found, true)
    wide = ious if found <= true else ious.T
    best = max(permutations(range(wide.shape[1]), wide.shape[0]), key=lambda to: sum(wide[range(len(to)), to]))
    expected = [sum(wide[row, column] >= limit for row, column in enumerate(best)) for limit in THRESHOLDS]
    assert list(match(ious)) == expected


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 1000))
def test_ious_are_those_of_pycocotools(found: int, true: int, seed: int) -> None:
    masks = np.random.default_rng(seed).random((found + true, 7, 9)) > 0.5
    ours = iou_matrix(torch.from_numpy(masks[:found]), torch.from_numpy(masks[found:]))
    encoded = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    theirs = coco_mask.iou(encoded[:found], encoded[found:], [0] * true)
    assert ours.shape == (found, true)
    assert np.allclose(ours, np.array(theirs).reshape(found, true))


def boxes(*corners: tuple[int, int, int, int]) -> torch.Tensor:
    masks = torch.zeros(len(corners), 20, 30, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, corners, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def rles(masks: torch.Tensor) -> tuple[Rle, ...]:
    return tuple(to_rle(mask) for mask in masks)


class Model:
    """Answers each phrase with given masks."""

    def __init__(self, name: str, answers: dict[str, torch.Tensor], presence: float | None = None) -> None:
        self.name, self._answers, self._presence = name, answers, presence

    def __call__(self, prompt: Prompt) -> Answer:
        assert isinstance(prompt, ConceptPrompt)
        masks = self._answers.get(prompt.phrase, boxes())
        return Answer(masks, torch.ones(len(masks)), presence=self._presence)


def test_phrases_are_scored_against_their_own_masks_and_the_first_model() -> None:
    left, right = boxes((0, 0, 10, 10)), boxes((20, 0, 30, 10))
    image = TrueImage(
        "one",
        Path(),
        (20, 30),
        (),
        Path(),
        (TruePhrase("dog", rles(torch.cat([left, right]))), TruePhrase("cat"), TruePhrase("car", exhaustive=False)),
    )
    first = Model("first", {"dog": torch.cat([right, left]), "cat": left}, 0.75)
    second = Model("second", {"dog": boxes((0, 0, 10, 8), (0, 0, 2, 2)), "car": left})
    models: list[Any] = [first, second]
    rows = [row for phrase in choose_phrases(image, Selection()) for row in score_phrase(models, models, "one", phrase)]
    assert [(row.model, row.phrase) for row in rows] == [
        ("first", "dog"), ("second", "dog"), ("first", "cat"), ("second", "cat")
    ]  # fmt: skip
    dog, other = rows[0], rows[1]
    assert (dog.objects, dog.found, dog.hits, dog.presence) == (2, 2, (2,) * 10, 0.75)
    assert (other.found, other.hits, other.presence) == (2, (1,) * 7 + (0,) * 3, None)  # an IoU of 0.8
    assert (other.first_found, other.first_hits) == (2, other.hits)
    assert (rows[2].objects, rows[2].found, rows[2].hits) == (0, 1, (0,) * 10)
    assert rows[3].found == 0


def test_the_most_favourable_annotator_counts() -> None:
    left, both = boxes((0, 0, 10, 10)), boxes((0, 0, 10, 10), (20, 0, 30, 10))

    def ask(found: torch.Tensor, *annotators: torch.Tensor) -> tuple[int, tuple[int, ...]]:
        phrase = TruePhrase("dog", rles(annotators[0]), tuple(rles(masks) for masks in annotators[1:]))
        model: Any = Model("model", {"dog": found})
        (row,) = score_phrase([model], [model], "one", phrase)
        return row.objects, row.hits

    assert ask(left, both, left) == (1, (1,) * 10)
    assert ask(both, left, both) == (2, (2,) * 10)
    assert ask(boxes(), both, boxes()) == (0, (0,) * 10), "one annotator saw nothing either: a true negative"
    assert ask(left, boxes(), boxes()) == (0, (0,) * 10)


def test_negatives_are_drawn_by_image_and_seed() -> None:
    def image(name: str) -> TrueImage:
        absent = tuple(f"thing {number}" for number in range(40))
        return TrueImage(name, Path(), (20, 30), (), Path(), (TruePhrase("dog"),), absent)

    def chosen(name: str, seed: int, count: int) -> list[str]:
        return [phrase.text for phrase in choose_phrases(image(name), Selection(seed=seed, negatives=count))]

    assert chosen("a", 0, 0) == ["dog"]
    assert len(chosen("a", 0, 3)) == 4
    assert chosen("a", 0, 3) == chosen("a", 0, 3) != chosen("b", 0, 3)
    assert chosen("a", 1, 3) != chosen("a", 0, 3)
    assert len(chosen("a", 0, 99)) == 41
