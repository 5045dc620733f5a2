"""Run lengths against pycocotools, the reference, and against malformed strings, on which pycocotools crashes."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from efficientsam3.data.annotations import rle as rle_module
from efficientsam3.data.annotations.rle import Rle

masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=30))


def encode(mask: npt.NDArray[np.bool_]) -> dict[str, bytes]:
    rle: dict[str, bytes] = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return rle


@settings(max_examples=200, deadline=None)
@given(masks)
def test_masks_areas_and_boxes_are_those_of_pycocotools(mask: npt.NDArray[np.bool_]) -> None:
    encoded = encode(mask)
    rle = Rle(*mask.shape, encoded["counts"])
    assert np.array_equal(rle.mask(), mask)
    assert rle.area == coco.area(encoded) == mask.sum()
    box = rle.box()
    if box is None:
        assert not mask.any()
    else:
        ys, xs = np.nonzero(mask)
        assert box == (xs.min(), ys.min(), xs.max(), ys.max())
    y, x = mask.shape[0] // 2, mask.shape[1] // 2
    assert rle.contains(x, y) == mask[y, x]


def test_counts_of_several_characters() -> None:
    mask = np.zeros((1500, 2250), dtype=bool)
    mask[100:1400, 50:2200] = True
    assert np.array_equal(Rle(1500, 2250, encode(mask)["counts"].decode()).mask(), mask)


@settings(max_examples=500, deadline=None)
@given(
    st.integers(-2, 50),
    st.integers(-2, 50),
    st.one_of(st.text(max_size=40), st.text(alphabet=[chr(code) for code in range(46, 114)], max_size=40)),
)
def test_any_string_is_a_mask_or_a_value_error(height: int, width: int, counts: str) -> None:
    try:
        rle = Rle(height, width, counts)
    except ValueError:
        return
    assert rle.mask().shape == (height, width)
    assert rle.mask().sum() == rle.area


@pytest.mark.parametrize("counts", ["P", "0P", "PPPPPPPP0", "é0", "\x000"])
def test_strings_that_run_over_are_malformed(counts: str) -> None:
    with pytest.raises(ValueError, match="malformed"):
        Rle(4, 4, counts)


def test_a_mask_that_would_not_fit_in_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="a mask of"):
        Rle(1 << 20, 1 << 20, "0")


@settings(max_examples=100, deadline=None)
@given(masks, st.integers(7, 20))
def test_long_strings_are_parsed_in_pieces(mask: npt.NDArray[np.bool_], piece: int) -> None:
    counts = encode(mask)["counts"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rle_module, "_CHUNK", piece)
        assert np.array_equal(Rle(*mask.shape, counts).mask(), mask)


def test_more_runs_than_pixels_are_refused_before_they_are_parsed() -> None:
    with pytest.raises(ValueError, match="1000 runs in a mask of 16 pixels"):
        Rle(4, 4, "0" * 1000)
