"""Clicks as a user gives them: each on the largest error that the answer to the ones before has left.

The protocol of interactive segmentation since RITM (Sofiiuk et al. 2021) and SAM (Kirillov et al. 2023, section 7.1).
"""

from collections.abc import Collection

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

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
    missed, surplus = _deepest(true & ~found), _deepest(found & ~true)
    depth, point, label = (*missed, 1) if missed[0] >= surplus[0] else (*surplus, 0)
    return (point, label) if depth > 0 else None


def _deepest(error: torch.Tensor) -> tuple[float, Point]:
    mask = error.numpy()
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return 0.0, (0.0, 0.0)
    top, left = rows[0], columns[0]
    depths = distance_transform_edt(np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1))
    row, column = np.unravel_index(np.argmax(depths), depths.shape)
    return float(depths[row, column]), (float(left + column - 1), float(top + row - 1))
