import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from efficientsam3.data.preprocess import (
    SAM3_PREPROCESSING,
    SAM_PREPROCESSING,
    Preprocessing,
    build_valid_mask,
    normalise,
    resize_image,
)

SIDES = st.integers(1, 3000)


@given(SIDES, SIDES)
def test_square_covers_everything_and_pad_keeps_the_aspect(height: int, width: int) -> None:
    assert SAM3_PREPROCESSING.content_size(height, width) == (1008, 1008)
    content = SAM_PREPROCESSING.content_size(height, width)
    assert max(content) == 1024
    assert min(content) >= 1
    scale = 1024 / max(height, width)
    assert abs(content[0] - height * scale) <= 0.5 or content[0] == 1
    assert abs(content[1] - width * scale) <= 0.5 or content[1] == 1


def test_padding_is_right_and_below_and_zero_after_normalising() -> None:
    preprocessing = Preprocessing(image_size=8, resize="pad", mean=(0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7))
    pixels, size = resize_image(torch.full((3, 20, 10), 255, dtype=torch.uint8), preprocessing)
    assert size == (8, 4)
    normalised = normalise(pixels[None], torch.tensor([size]), preprocessing)[0]
    assert (normalised[:, :, 4:] == 0).all()
    for channel, (mean, std) in enumerate(zip(preprocessing.mean, preprocessing.std, strict=True)):
        torch.testing.assert_close(normalised[channel, :, :4], torch.full((8, 4), (1 - mean) / std))


def test_sam3_maps_black_and_white_to_minus_one_and_one() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).repeat(3, 1008, 504)
    normalised = normalise(pixels[None], torch.tensor([[1008, 1008]]), SAM3_PREPROCESSING)
    assert normalised.dtype == torch.float32
    assert normalised[..., 0].eq(-1).all()
    assert normalised[..., 1].eq(1).all()


@given(st.integers(1, 64), st.integers(1, 64))
def test_a_cell_is_valid_when_its_centre_shows_the_image(height: int, width: int) -> None:
    mask = build_valid_mask(torch.tensor([[height, width]]), image_size=64, grid_size=16)[0]
    for row in range(16):
        for column in range(16):
            inside = (row == 0 or 4 * row + 2 < height) and (column == 0 or 4 * column + 2 < width)
            assert bool(mask[row, column]) == inside


def test_square_masks_are_all_ones() -> None:
    assert build_valid_mask(torch.tensor([[1008, 1008]]), 1008, 72).all()


def test_mean_and_deviation_are_made_once_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making them copies to the device, and on a GPU the host waits for that in every step."""
    preprocessing = Preprocessing(image_size=8, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    pixels, sizes = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8), torch.full((2, 2), 8)
    with torch.inference_mode():
        first = normalise(pixels, sizes, preprocessing)
    monkeypatch.setattr(torch, "tensor", None)
    trained = pixels.float().requires_grad_()
    again = normalise(trained, sizes, preprocessing)
    assert torch.equal(again, first)
    again.sum().backward()
    assert trained.grad is not None
