from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from efficientsam3.evaluate.masks.objects import TrueObject, interior_point
from efficientsam3.evaluate.masks.segmenters import to_rle
from efficientsam3.sam3.geometry import check_prompt
from efficientsam3.sam3.prompts import ConceptPrompt, ObjectPrompt


def thing(mask: np.ndarray, **facts: object) -> TrueObject:
    return TrueObject(0, to_rle(torch.from_numpy(mask)), **facts)  # type: ignore[arg-type]


def clearance(mask: np.ndarray, x: int, y: int) -> int:
    """Side of the largest square around a pixel that lies in the mask."""
    radius = 0
    while True:
        rows, columns = slice(y - radius, y + radius + 1), slice(x - radius, x + radius + 1)
        if (
            y < radius
            or x < radius
            or mask[rows, columns].shape != (2 * radius + 1,) * 2
            or not mask[rows, columns].all()
        ):
            return 2 * radius - 1
        radius += 1


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(
        np.bool_, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.sampled_from([True] * 9 + [False])
    )
)
def test_no_pixel_is_further_inside_than_the_interior_point(mask: np.ndarray) -> None:
    if not mask.any():
        return
    x, y = interior_point(mask)
    rows, columns = np.nonzero(mask)
    best = max(clearance(mask, int(column), int(row)) for row, column in zip(rows, columns, strict=True))
    assert mask[int(y), int(x)]
    assert clearance(mask, int(x), int(y)) == best


def test_the_interior_point_of_a_ring_is_on_the_ring_and_of_a_plus_in_its_middle() -> None:
    ring = np.ones((21, 21), dtype=bool)
    ring[5:16, 5:16] = False
    x, y = interior_point(ring)
    assert ring[int(y), int(x)]
    plus = np.zeros((9, 9), dtype=bool)
    plus[3:6] = plus[:, 3:6] = True
    assert interior_point(plus) == (4, 4)


def test_each_prompt_of_an_object() -> None:
    mask = np.zeros((20, 30), dtype=bool)
    mask[4:10, 6:16] = True
    known = thing(mask, annotated_point=(7.5, 5.0), category="cat")
    assert known.prompt("box") == ObjectPrompt(box=(6, 4, 16, 10))
    assert known.prompt("point") == ObjectPrompt(((7.5, 5.0),), (1,))
    assert known.prompt("center") == ObjectPrompt(((11, 7),), (1,))
    assert known.prompt("text") == ConceptPrompt("cat")
    x, y = thing(mask).point
    assert (x, y) in {(8 + i, 6 + j) for i in range(7) for j in (0, 1)}


def test_a_jittered_box_is_the_object_s_own_and_stays_in_the_image() -> None:
    mask = np.zeros((300, 400), dtype=bool)
    mask[100:200, 150:350] = True
    prompt = thing(mask).prompt("jitter", 7)
    assert prompt == thing(mask).prompt("jitter", 7) != thing(mask).prompt("jitter", 8)
    assert prompt != replace(thing(mask), number=1).prompt("jitter", 7)
    boxes = np.array([thing(mask).jittered_box(number) for number in range(400)])
    errors = boxes - np.array(thing(mask).box)
    assert abs(errors).max() == 20
    assert errors[:, 1::2].std() == pytest.approx(9.3, abs=0.7)  # a tenth of 100, less what 20 cuts off
    assert abs(errors.mean(0)).max() < 3
    corner = np.zeros((30, 40), dtype=bool)
    corner[29, 39] = corner[0, 0] = True
    for number in range(50):
        check_prompt(thing(corner).prompt("jitter", number), (30, 40))


def test_a_box_is_tight_from_edge_to_edge() -> None:
    mask = np.zeros((5, 7), dtype=bool)
    mask[4, 6] = True
    assert thing(mask).box == (6, 4, 7, 5)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_a_mask_of_the_whole_image_has_an_interior_point(size: tuple[int, int]) -> None:
    x, y = interior_point(np.ones(size, dtype=bool))
    assert 0 <= x < size[1]
    assert 0 <= y < size[0]
