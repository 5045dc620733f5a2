"""Images for the rows, good and bad."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path, size: tuple[int, int] = (64, 48), seed: int = 0, mode: str = "RGB") -> Path:
    """Write a noisy image, (width, height) pixels, in the format that the suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    (image if mode == "RGB" else image.convert(mode)).save(path)
    return path


def sparse(path: Path, size: int) -> Path:
    """Write a file that claims `size` bytes and takes none: the start of a JPEG, then nothing."""
    path.write_bytes(b"\xff\xd8\xff\xe0")
    with path.open("r+b") as file:
        file.truncate(size)
    return path
