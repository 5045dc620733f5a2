"""Which files are images, and finding them by path, folder or glob pattern."""

import glob
import os
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
        names = _images_in(path) if path.is_dir() else _matches_of(path)
        lists = ((name, own.setdefault(name.parent, OwnFiles(name.parent))) for name in names)
        matches = [name for name, listed in lists if not listed.owns(name.name)]
        if not matches:
            raise UserError(f"No image matches {pattern} ({', '.join(IMAGE_SUFFIXES)}): check the path.")
        found |= dict.fromkeys(matches)
    return list(found)


def _matches_of(pattern: Path) -> list[Path]:
    """What a pattern matches. `**` does not follow links to folders, since they may lead in circles."""
    if "**" not in pattern.parts:
        return [Path(name) for name in sorted(glob.glob(str(pattern)))]
    first = pattern.parts.index("**")
    below = pattern.parts[first + 1 :] or ("*",)
    found: set[Path] = set()
    for root in _matches_of(Path(*pattern.parts[:first])):
        for folder, folders, _ in os.walk(root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found.update(_matches_of(Path(glob.escape(folder), *below)))
    return sorted(found)


def _images_in(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if child.suffix.lower() in IMAGE_SUFFIXES)
    except OSError as error:
        raise unreadable(folder, error) from error
