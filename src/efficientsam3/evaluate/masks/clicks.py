"""Clicks as a user gives them: each on the largest error that the answer to the ones before has left.

The protocol of interactive segmentation since RITM (Sofiiuk et al. 2021) and SAM (Kirillov et al. 2023, section 7.1).
"""

from collections.abc import Collection

import torch

from efficientsam3.data.annotations.deepest import deepest_pixel
from efficientsam3.evaluate.masks.segmenters import Ask
from efficientsam3.sam3.decoders import Answer
from efficientsam3.sam3.prompts import ObjectPrompt, Point


def click(ask: Ask, true: torch.Tensor, rounds: Collection[int]) -> dict[int, tuple[ObjectPrompt, Answer]]:
    """Click until the last of the rounds.

    Each prompt has all clicks so far and, where the model takes it, the low-resolution mask of the answer before. A
    mask without error is clicked no more: the later rounds have its answer.

    Args:
        ask: answers prompts for one image.
        true: (H, W) bool, not empty.
        rounds: numbers of clicks, such as 1, 3 and 5.

    Returns:
        for each of the rounds, the prompt and its answer.
    """
    answers: dict[int, tuple[ObjectPrompt, Answer]] = {}
    prompt, answer = ObjectPrompt(), Answer(torch.zeros_like(true)[None], torch.zeros(1))
    for number in range(1, max(rounds) + 1):
        following = next_click(true, answer.masks[0])
        if following is not None:
            point, label = following
            prompt = ObjectPrompt((*prompt.points, point), (*prompt.labels, label), mask=answer.logits)
            answer = ask(prompt)
        if number in rounds:
            answers[number] = prompt, answer
    return answers


def next_click(true: torch.Tensor, found: torch.Tensor) -> tuple[Point, int] | None:
    """The pixel furthest inside what was missed or found too much, whichever of the two goes deeper, and its label.

    Distances are Euclidean, to the nearest pixel that is no such error; the image's border counts as one. Of equals,
    what was missed and the first pixel row by row.

    Args:
        true: (H, W) bool.
        found: the same.

    Returns:
        (x, y) and 1 where the object was missed, 0 where too much was found; None where nothing is wrong.
    """
    missed, surplus = deepest_pixel((true & ~found).numpy()), deepest_pixel((found & ~true).numpy())
    depth, (x, y), label = (*missed, 1) if missed[0] >= surplus[0] else (*surplus, 0)
    return ((float(x), float(y)), label) if depth > 0 else None
