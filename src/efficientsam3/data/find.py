"""Which files are images, and finding them by path, folder or glob pattern."""

import glob
from collections.abc import Iterable
from pathlib import Path

from efficientsam3.runtime.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # in any case
_BYTES = tuple(suffix.encode() for suffix in IMAGE_SUFFIXES)


def is_image_name(name: bytes) -> bool:
    """Whether a file name, in the file system's bytes, is that of an image; hidden files are not images."""
    return name.lower().endswith(_BYTES) and not name.startswith(b".")


def find_images(patterns: Iterable[str]) -> list[Path]:
    """Find images by path, folder or glob pattern, in the order given, each once.

    Raises:
        UserError: a pattern matches nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            matches = sorted(child for child in path.iterdir() if child.suffix.lower() in IMAGE_SUFFIXES)
        else:
            matches = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
        if not matches:
            raise UserError(f"No image matches {pattern} ({', '.join(IMAGE_SUFFIXES)}): check the path.")
        found |= dict.fromkeys(matches)
    return list(found)
