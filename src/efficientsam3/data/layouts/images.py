"""`images`: any tree of folders.

An image's id is its path relative to the top, without the suffix. Top folders `train/` and `val/` are the splits;
without them, a hash of the id decides, with 10 % for validation.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from efficientsam3.data.find import is_image_name
from efficientsam3.data.layouts.layout import Layout
from efficientsam3.data.split import SPLITS, Split, split_of
from efficientsam3.runtime.files import unreadable

if TYPE_CHECKING:
    from efficientsam3.data.listing import ImageListing


class Images(Layout):
    """Any tree of folders with images."""

    name = "images"
    description = "any tree of folders; train/ and val/ at its top, or 10 % for validation"

    def recognises(self, folder: Path) -> bool:
        """Any folder is such a tree."""
        return True

    def list_split(self, data_path: Path, split: Split) -> "ImageListing":
        """See `Layout`. Ids are relative to the top in either case, so they never repeat between splits."""
        from efficientsam3.data.listing import ImageListing

        if any((data_path / part).is_dir() for part in SPLITS):
            return ImageListing(data_path, _names_below(data_path, split.encode() + b"/"))
        everything = _names_below(data_path, b"")
        return ImageListing(data_path, (name for name in everything if split_of(os.path.splitext(name)[0]) == split))


def _names_below(root: Path, prefix: bytes) -> Iterator[bytes]:
    """Relative paths of images below `root`/`prefix`. Links to folders are not followed: they may lead in circles."""
    start = os.path.join(os.fsencode(root), prefix)
    for folder, below, files in os.walk(start, onerror=_refuse):
        below[:] = [name for name in below if not name.startswith(b".")]
        relative = prefix + os.path.relpath(folder, start) + b"/" if folder != start else prefix
        yield from (relative + name for name in files if is_image_name(name))


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # a split may be missing
        raise unreadable(os.fsdecode(error.filename), error) from error
