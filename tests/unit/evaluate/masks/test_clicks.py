"""Clicks, with models whose mistakes are known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from efficientsam3.evaluate.masks.clicks import click, next_click
from efficientsam3.sam3.decoders import Answer, load_decoder
from efficientsam3.sam3.geometry import Placement, mask_iou
from efficientsam3.sam3.prompts import ObjectPrompt, Prompt

TRUE = torch.zeros(40, 60, dtype=torch.bool)
TRUE[10:31, 20:41] = True


class Disc:
    """Answers with a disc around each positive click, without those around negative ones."""

    def __init__(self, radius: float, refines: bool = True) -> None:
        self.asked: list[ObjectPrompt] = []
        self._radius, self._refines = radius, refines

    def __call__(self, prompt: Prompt) -> Answer:
        assert isinstance(prompt, ObjectPrompt)
        self.asked.append(prompt)
        rows, columns = torch.meshgrid(torch.arange(40), torch.arange(60), indexing="ij")
        mask = torch.zeros(40, 60, dtype=torch.bool)
        for (x, y), label in prompt.labelled_points:
            mask[(rows - y) ** 2 + (columns - x) ** 2 <= self._radius**2] = bool(label)
        logits = torch.full((10, 15), float(len(self.asked)))
        return Answer(mask[None], torch.ones(1), logits if self._refines else None)


def test_each_click_is_on_the_largest_error_of_the_answer_before() -> None:
    small = Disc(6)
    answers = click(small, TRUE, [1, 3, 5])
    assert list(answers) == [1, 3, 5]
    assert [len(prompt.points) for prompt in small.asked] == [1, 2, 3, 4, 5]
    assert small.asked[0] == ObjectPrompt(((30, 20),), (1,)), "the middle of the object"
    assert [None if prompt.mask is None else float(prompt.mask[0, 0]) for prompt in small.asked] == [None, 1, 2, 3, 4]
    ious = [mask_iou(answer.masks[0], TRUE) for _, answer in answers.values()]
    assert ious == sorted(ious)
    assert all(answers[3][0].labels)
    large = Disc(25)
    click(large, TRUE, [2])
    assert large.asked[1].labels == (1, 0), "what was found too much goes deepest"
    assert not TRUE[int(large.asked[1].points[1][1]), int(large.asked[1].points[1][0])]


def test_a_model_that_takes_no_masks_is_fed_none_and_a_right_mask_is_left_alone() -> None:
    plain = Disc(6, refines=False)
    click(plain, TRUE, [3])
    assert [prompt.mask for prompt in plain.asked] == [None] * 3
    asked = []

    def right(prompt: Prompt) -> Answer:
        asked.append(prompt)
        return Answer(TRUE[None], torch.ones(1))

    answers = click(right, TRUE, [1, 5])
    assert len(asked) == 1
    assert answers[5] == answers[1]


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.bool_, st.tuples(st.just(2), st.integers(1, 12), st.integers(1, 12))))
def test_no_wrong_pixel_is_further_from_what_is_right(masks: np.ndarray) -> None:
    true, found = torch.from_numpy(masks)
    clicked = next_click(true, found)
    wrong = [true & ~found, found & ~true]
    if clicked is None:
        assert torch.equal(true, found)
        return
    (x, y), label = clicked
    assert wrong[1 - label][int(y), int(x)]

    def depth(error: torch.Tensor, row: int, column: int) -> float:
        """Distance to the nearest pixel that is no such error, by trying all, those around the image included."""
        padded = np.pad(error.numpy(), 1)
        rows, columns = np.nonzero(~padded)
        return float(np.sqrt((rows - row - 1) ** 2 + (columns - column - 1) ** 2).min())

    best = max(depth(error, *pixel) for error in wrong for pixel in error.nonzero().tolist())
    assert depth(wrong[1 - label], int(y), int(x)) == pytest.approx(best)


def test_sam3_refines_the_mask_that_it_is_fed(tiny_sam3_path: Path) -> None:
    decoder = load_decoder(tiny_sam3_path, torch.device("cpu"))
    embedding = torch.randn(1, 64, 16, 16, generator=torch.Generator().manual_seed(0))
    ask = decoder.open(embedding, Placement((50, 90), (224, 224), 224))
    points = ((30, 20), (60, 30)), (1, 0)
    first = ask(ObjectPrompt(*points))
    assert first.logits is not None
    refined = ask(ObjectPrompt(*points, mask=first.logits))
    again = ask(ObjectPrompt(*points, mask=first.logits))
    assert refined.logits is not None
    assert again.logits is not None
    assert torch.equal(refined.logits, again.logits)
    assert not torch.allclose(first.logits, refined.logits)
