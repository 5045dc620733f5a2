"""Which files are images, and finding them by path, folder or glob pattern."""

import glob
from collections.abc import Iterable
from pathlib import Path

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import unreadable
from efficientsam3.runtime.own_files import OwnFiles

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # in any case
_BYTES = tuple(suffix.encode() for suffix in IMAGE_SUFFIXES)


def is_image_name(name: bytes) -> bool:
    """Whether a file name, in the file system's bytes, is that of an image; hidden files are not images."""
    return name.lower().endswith(_BYTES) and not name.startswith(b".")


def find_images(patterns: Iterable[str]) -> list[Path]:
    """Find images by path, folder or glob pattern, in the order given, each once.

    What this program wrote among them, such as overlays of an earlier `predict`, is left out of folders and patterns.

    Raises:
        UserError: a pattern matches nothing, or a folder cannot be read.
    """
    found: dict[Path, None] = {}
    own: dict[Path, OwnFiles] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_file():
            found[path] = None
            continue
        names = _images_in(path) if path.is_dir() else map(Path, sorted(glob.glob(pattern, recursive=True)))
        lists = ((name, own.setdefault(name.parent, OwnFiles(name.parent))) for name in names)
        matches = [name for name, listed in lists if not listed.owns(name.name)]
        if not matches:
            raise UserError(f"No image matches {pattern} ({', '.join(IMAGE_SUFFIXES)}): check the path.")
        found |= dict.fromkeys(matches)
    return list(found)


def _images_in(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if child.suffix.lower() in IMAGE_SUFFIXES)
    except OSError as error:
        raise unreadable(folder, error) from error
