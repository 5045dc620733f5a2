"""Reading images: every supported file becomes upright RGB, or an error that names the file.

Only the functions that return tensors import PyTorch, so that images can be read without it.
"""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from efficientsam3.data.jpeg import is_jpeg, is_unfinished
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import open_regular, read_bytes

if TYPE_CHECKING:
    import torch

Pixels = npt.NDArray[np.uint8]
# Pillow's other readers are not safe for untrusted files: EPS starts Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP")
_ORIENTATION = 0x0112  # EXIF tag
_TURNED = {5, 6, 7, 8}  # its values that swap height and width
_STRIP_ROWS = 64
# Twice what the most pixels that Pillow opens take as RGB; a sparse file may claim terabytes.
MAX_IMAGE_BYTES = 1 << 30


class ImageStamp(NamedTuple):
    """What an image's file held, by which one that was replaced is noticed."""

    size: int  # bytes
    crc: int  # CRC-32

    @classmethod
    def of(cls, data: bytes) -> Self:
        """The stamp of a file's content."""
        return cls(len(data), zlib.crc32(data))


UNKNOWN_IMAGE = ImageStamp(0, 0)
_SCAN = b"\xff\xda"  # a JPEG's marker; a progressive one has up to a dozen
_MOST_SCANNED = 20_000_000_000  # pixels over all scans, each of which the decoder goes through


class BrokenImageError(UserError):
    """An image is missing, unreadable, half-written, or in an unsupported format."""


def read_pixels(path: Path) -> Pixels:
    """Read a JPEG, PNG or WebP file.

    EXIF orientation is applied. Grey, palette and CMYK become RGB, 16 bits become the upper 8, transparency is dropped
    (as transformers' processors drop it), and an animation gives its first frame.

    Args:
        path: the file.

    Returns:
        (H, W, 3) uint8 RGB in [0, 255].

    Raises:
        BrokenImageError: the file cannot be read as a whole image.
    """
    try:
        return decode_pixels(read_image(path), path)
    except OSError as error:
        raise _broken(path, error) from error


def read_image(path: Path) -> bytes:
    """The content of an image's file.

    Raises:
        OSError: it cannot be read, is not a regular file, or has more than MAX_IMAGE_BYTES.
    """
    return read_bytes(path, MAX_IMAGE_BYTES)


def stamp_image(path: Path) -> ImageStamp:
    """The stamp of an image's file.

    Raises:
        BrokenImageError: the file cannot be read.
    """
    try:
        return ImageStamp.of(read_image(path))
    except OSError as error:
        raise _broken(path, error) from error


def read_rgb(path: Path) -> torch.Tensor:
    """`read_pixels` as (3, H, W), a view of (H, W, 3) memory: the layout in which resizing is fastest."""
    return read_stamped(path)[0]


def read_stamped(path: Path) -> tuple[torch.Tensor, ImageStamp]:
    """`read_rgb` of a file, and the stamp of what it held."""
    try:
        data = read_image(path)
    except OSError as error:
        raise _broken(path, error) from error
    return decode_rgb(data, path), ImageStamp.of(data)


def read_size(path: Path) -> tuple[int, int]:
    """Height and width that `read_rgb` would give, from the file's header alone.

    Raises:
        BrokenImageError: the file does not have an image's header.
    """
    try:
        with open_regular(path) as file, Image.open(file, formats=_FORMATS) as image:
            height, width = image.height, image.width
            return (width, height) if image.getexif().get(_ORIENTATION, 1) in _TURNED else (height, width)
    except Exception as error:  # as in decode_rgb
        raise _broken(path, error) from error


def decode_rgb(data: bytes, path: Path) -> torch.Tensor:
    """`read_rgb` of a file's content; `path` is only for the error message."""
    return _as_tensor(decode_pixels(data, path))


def _as_tensor(pixels: Pixels) -> torch.Tensor:
    import torch

    return torch.from_numpy(pixels).permute(2, 0, 1)  # [3, H, W]


def decode_pixels(data: bytes, path: Path) -> Pixels:
    """`read_pixels` of a file's content; `path` is only for the error message."""
    try:
        if is_jpeg(data) and is_unfinished(data):
            raise ValueError("half-written JPEG, its end is missing")
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return _upright(_pixels(image, data), image.getexif().get(_ORIENTATION, 1))
    # Pillow does not document what broken files raise; SyntaxError, struct.error and KeyError have all occurred.
    except Exception as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> BrokenImageError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
    return BrokenImageError(
        f"Image {path} cannot be read ({reason or type(error).__name__}): replace it, or let "
        "`efficientsam3 data check DIR --fix` set such files aside."
    )


def _pixels(image: Image.Image, data: bytes) -> Pixels:
    """Decode to (H, W, 3). Where simplejpeg gives what Pillow gives, it is used: it takes two thirds of the time."""
    if image.format == "JPEG" and (scans := data.count(_SCAN)) * image.width * image.height > _MOST_SCANNED:
        raise ValueError(f"{scans} scans of {image.width} x {image.height} pixels would take minutes to decode")
    if image.format == "JPEG" and image.mode in {"RGB", "L"}:
        # `strict` would refuse what other decoders only warn about, such as stray bytes before a marker.
        decoded: Pixels = simplejpeg.decode_jpeg(data, "RGB", strict=False)
        return decoded
    image = _to_rgb(image)
    # In strips: for a whole image, Pillow makes three copies, which takes twice as long.
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for top in range(0, image.height, _STRIP_ROWS):
        bottom = min(top + _STRIP_ROWS, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn (H, W, 3) as EXIF says: 5 to 8 swap the axes after mirroring, 1 and unknown ones are upright."""
    mirrored = {2: (1,), 3: (0, 1), 4: (0,), 6: (0,), 7: (0, 1), 8: (1,)}.get(orientation, ())
    pixels = np.flip(pixels, mirrored)
    return np.ascontiguousarray(pixels.swapaxes(0, 1) if orientation in _TURNED else pixels)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would convert by clipping everything above 255
        upper = (np.asarray(image).astype(np.uint32) >> 8).clip(max=255)
        image = Image.fromarray(upper.astype(np.uint8))
    elif image.mode == "P":
        image = image.convert("RGBA")  # Pillow warns when it drops a palette's transparency by itself
    return image.convert("RGB")
