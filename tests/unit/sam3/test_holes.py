"""Filling holes, against a search pixel by pixel."""

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientsam3.sam3.holes import MAX_HOLE_AREA, fill_holes

Floats = npt.NDArray[np.float32]


def fill_by_search(logits: Floats, max_area: int) -> Floats:
    """Breadth-first, from each pixel of the background (h, w) to its eight neighbours."""
    filled, left = logits.copy(), {(int(y), int(x)) for y, x in np.argwhere(logits <= 0)}
    while left:
        queue, part = deque([left.pop()]), []
        while queue:
            y, x = queue.popleft()
            part.append((y, x))
            near = {(y + down, x + right) for down in (-1, 0, 1) for right in (-1, 0, 1)} & left
            left -= near
            queue.extend(near)
        if len(part) <= max_area:
            filled[tuple(np.transpose(part))] = 10
    return filled


def some_logits(seed: int) -> Floats:
    """Noise (h, w) of any shape, density and grain, with a few values of exactly 0."""
    rng = np.random.default_rng(seed)
    grain = int(rng.integers(1, 7))
    noise = rng.normal(rng.uniform(-0.5, 1.5), 1, rng.integers(1, 100 // grain, 2)).repeat(grain, 0).repeat(grain, 1)
    return (np.round(noise, 1) + rng.choice([0, 0.01])).astype(np.float32)


@pytest.mark.parametrize("seed", range(100))
def test_holes_are_those_of_a_search(seed: int) -> None:
    logits = some_logits(seed)
    for max_area in (1, 20, MAX_HOLE_AREA):
        np.testing.assert_array_equal(fill_holes(logits[None], max_area)[0], fill_by_search(logits, max_area))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=7), st.integers(1, 12))
def test_any_small_mask_is_filled_as_by_a_search(rows: list[list[bool]], max_area: int) -> None:
    logits = np.where(rows, 1, -1).astype(np.float32)
    np.testing.assert_array_equal(fill_holes(logits[None], max_area)[0], fill_by_search(logits, max_area))


def spiral(side: int) -> npt.NDArray[np.bool_]:
    """One path that winds inwards, a pixel wide, a pixel apart."""
    path = np.zeros((side, side), dtype=np.bool_)
    y, x, down, right = 0, 0, 0, 1
    path[0, 0] = True
    for length in [side - 1, *(n for n in range(side - 1, 0, -2) for _ in (0, 1))]:
        for _ in range(length):
            y, x = y + down, x + right
            path[y, x] = True
        down, right = right, -down
    return path


@pytest.mark.parametrize(
    "background",
    [
        pytest.param(spiral(33), id="spiral"),
        pytest.param(np.indices((31, 32)).sum(0) % 2 == 0, id="checkerboard, joined by its corners"),
        pytest.param((np.indices((30, 40))[1] % 2 == 0) | (np.indices((30, 40))[0] == 29), id="comb"),
        pytest.param(np.ones((3, 5), np.bool_), id="nothing but background"),
        pytest.param(np.zeros((3, 5), np.bool_), id="nothing but object"),
    ],
)
def test_shapes_that_wind(background: npt.NDArray[np.bool_]) -> None:
    area = int(background.sum())
    logits = np.where(background, -1, 1).astype(np.float32)
    for max_area in (area - 1, area):
        np.testing.assert_array_equal(fill_holes(logits[None], max_area)[0], fill_by_search(logits, max_area))


@pytest.mark.parametrize(("top", "left"), [(100, 100), (0, 100), (100, 0), (0, 0), (272, 272), (272, 0)])
def test_a_hole_of_256_pixels_is_filled_and_one_of_257_is_not(top: int, left: int) -> None:
    logits = np.full((2, 288, 288), 3, np.float32)
    logits[:, top : top + 16, left : left + 16] = -2  # in the middle, at edges or in corners: all are holes to Meta
    logits[1, top - 1 if top else 16, left - 1 if left else 16] = 0  # by its corner
    kept = logits.copy()
    filled = fill_holes(logits)
    np.testing.assert_array_equal(logits, kept)
    assert (filled[0] == np.where(logits[0] > 0, 3, 10)).all()
    assert (filled[1] == logits[1]).all()


def test_nothing_is_filled_of_nothing_or_by_an_area_of_0() -> None:
    logits: Any = np.array([[[1, 1, 1], [1, np.nan, 1], [1, 0, 1]]], np.float32)
    assert fill_holes(logits, 0) is logits
    np.testing.assert_array_equal(fill_holes(logits, 1)[0], [[1, 1, 1], [1, np.nan, 1], [1, 10, 1]])
    assert fill_holes(logits[:0]).shape == (0, 3, 3)
