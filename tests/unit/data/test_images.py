"""Reading images: every mode becomes upright RGB, and every broken file raises BrokenImageError."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from efficientsam3.data import images
from efficientsam3.data.images import BrokenImageError, read_rgb, read_size

RAMP = np.linspace(0, 255, 24 * 40 * 3).reshape(24, 40, 3).astype(np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (150, 70, 3), dtype=np.uint8)


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


JPEG = encoded(Image.fromarray(RAMP), "JPEG", quality=95)
PNG = encoded(Image.fromarray(RAMP), "PNG")
WEBP = encoded(Image.fromarray(RAMP), "WEBP", lossless=True)


def read(tmp_path: Path, data: bytes) -> torch.Tensor:
    path = tmp_path / "some-image"
    path.write_bytes(data)
    return read_rgb(path)


@pytest.mark.parametrize("data", [PNG, WEBP])
def test_lossless_formats_come_back_exactly(tmp_path: Path, data: bytes) -> None:
    image = read(tmp_path, data)
    assert image.dtype == torch.uint8
    assert np.array_equal(image.permute(1, 2, 0).numpy(), RAMP)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True, "quality": 30}])
def test_jpeg_is_what_pillow_decodes(tmp_path: Path, mode: str, options: dict[str, object]) -> None:
    data = encoded(Image.fromarray(NOISE).convert(mode), "JPEG", **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(read(tmp_path, data).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read(tmp_path, encoded(Image.fromarray(RAMP), "PNG", exif=exif)).permute(1, 2, 0).numpy()
    as_jpeg = read(tmp_path, encoded(Image.fromarray(RAMP), "JPEG", quality=95, exif=exif))
    assert (as_jpeg.permute(1, 2, 0).int() - torch.from_numpy(image.copy()).int()).abs().max() < 30
    turned = {
        1: RAMP,
        2: RAMP[:, ::-1],
        3: RAMP[::-1, ::-1],
        4: RAMP[::-1],
        5: RAMP.swapaxes(0, 1),
        6: RAMP[::-1].swapaxes(0, 1),
        7: RAMP[::-1, ::-1].swapaxes(0, 1),
        8: RAMP[:, ::-1].swapaxes(0, 1),
    }
    assert np.array_equal(image, turned[orientation])
    assert read_size(tmp_path / "some-image") == turned[orientation].shape[:2]


@pytest.mark.parametrize("mode", ["L", "1", "LA", "RGBA", "P", "PA"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    grey = Image.fromarray(RAMP[..., 0])
    source = grey.convert("1", dither=Image.Dither.NONE) if mode == "1" else grey.convert("LA").convert(mode)
    if mode == "PA":
        source = source.convert("P")
    options = {"transparency": b"\x00\x80\xff"} if mode == "P" else {}
    image = read(tmp_path, encoded(source, "PNG", **options))
    assert image.shape == (3, 24, 40)
    expected = (RAMP[..., 0] > 127) * 255 if mode == "1" else RAMP[..., 0]
    assert (image - torch.from_numpy(expected.astype(np.uint8)).int()).abs().max() <= 1


def test_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    image = read(tmp_path, encoded(Image.new("RGB", (16, 16), (200, 40, 90)).convert("CMYK"), "JPEG", quality=95))
    assert (image.float().mean((1, 2)) - torch.tensor([200.0, 40.0, 90.0])).abs().max() < 4


def test_16_bit_grey_keeps_the_upper_8_bits(tmp_path: Path) -> None:
    wide = np.linspace(0, 65535, 24 * 40).reshape(24, 40).astype(np.uint16)
    image = read(tmp_path, encoded(Image.fromarray(wide), "PNG"))
    assert np.array_equal(image[1].numpy(), (wide >> 8).astype(np.uint8))


@pytest.mark.parametrize("data", [JPEG, PNG, WEBP], ids=["jpeg", "png", "webp"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_half_written_file_is_refused(tmp_path: Path, data: bytes, share: float) -> None:
    with pytest.raises(BrokenImageError, match="some-image"):
        read(tmp_path, data[: int(len(data) * share)])


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_whose_rest_is_zeros_is_refused(tmp_path: Path, progressive: bool) -> None:
    """A crash leaves such a file where the file system had already extended it."""
    data = encoded(Image.fromarray(NOISE), "JPEG", quality=95, progressive=progressive)
    with pytest.raises(BrokenImageError, match="half-written"):
        read(tmp_path, data[: len(data) * 3 // 4] + bytes(len(data) // 4))


def test_bytes_after_the_end_of_a_jpeg_do_no_harm(tmp_path: Path) -> None:
    """Cameras append their own data."""
    assert torch.equal(read(tmp_path, JPEG + bytes(512)), read(tmp_path, JPEG))


def test_missing_files_and_folders_are_broken_images(tmp_path: Path) -> None:
    with pytest.raises(BrokenImageError, match="absent"):
        read_rgb(tmp_path / "absent.jpg")
    with pytest.raises(BrokenImageError, match=r"absent\.jpg"):
        read_size(tmp_path / "absent.jpg")
    with pytest.raises(BrokenImageError, match="cannot be read"):
        read_rgb(tmp_path)


def test_formats_that_run_other_programs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BrokenImageError):
        read(tmp_path, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")


def test_an_image_that_would_not_fit_in_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BrokenImageError, match="pixels"):
        read(tmp_path, encoded(Image.new("1", (20_000, 20_000)), "PNG"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.sampled_from([JPEG, PNG, WEBP]),
    edits=st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=6)), min_size=1, max_size=8),
    end=st.integers(1, 10_000),
)
def test_damaged_files_give_an_image_or_the_documented_error(
    tmp_path: Path, data: bytes, edits: list[tuple[int, bytes]], end: int
) -> None:
    damaged = bytearray(data)
    for position, replacement in edits:
        start = position % len(damaged)
        damaged[start : start + len(replacement)] = replacement
    try:
        image = read(tmp_path, bytes(damaged[:end]))
    except BrokenImageError:
        return
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3


def test_a_jpeg_of_countless_scans_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.jpg", progressive=True)
    assert read_rgb(tmp_path / "a.jpg").shape == (3, 64, 64)
    monkeypatch.setattr(images, "_MOST_SCANNED", 9 * 64 * 64)  # Pillow writes ten scans
    with pytest.raises(BrokenImageError, match=r"10 scans of 64 x 64 pixels would take minutes"):
        read_rgb(tmp_path / "a.jpg")
