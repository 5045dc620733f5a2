"""Putting pictures and their annotations into place: whole, in pairs, in the split that the id says.

    OUTPUT/images/{train,val}/ID.jpg
    OUTPUT/annotations/{train,val}/ID.json

Files are staged in a hidden folder beside their place and renamed when both halves of a pair are there, the annotation
first: whoever sees a picture finds its annotation.
"""

import mmap
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pydantic_core

from efficientsam3.data.jpeg import is_jpeg, is_unfinished
from efficientsam3.data.split import SPLITS, split_of

KINDS = {".jpg": "images", ".json": "annotations"}  # by suffix
_PARTNER = {".jpg": ".json", ".json": ".jpg"}
_LACKS = {".jpg": "an image without annotation", ".json": "an annotation without image"}
STAGING = ".staging"


@dataclass(frozen=True)
class Layout:
    """A dataset's folders, and which image goes where."""

    output: Path
    val_ratio: float

    def folders(self) -> list[Path]:
        """The four folders."""
        return [self.output / kind / split for kind in KINDS.values() for split in SPLITS]

    def prepare(self) -> None:
        """Make the folders, with an empty staging folder in each."""
        self.remove_staged()
        for folder in self.folders():
            (folder / STAGING).mkdir(parents=True)

    def remove_staged(self) -> None:
        """Remove the staging folders with what an interrupted run left in them."""
        for folder in self.folders():
            shutil.rmtree(folder / STAGING, ignore_errors=True)

    def place(self, stem: str, suffix: str) -> str:
        """Where a file belongs."""
        return f"{self.output}/{KINDS[suffix]}/{split_of(stem.encode(), self.val_ratio)}/{stem}{suffix}"


def staged_path(place: str) -> str:
    """A path for a file under way to `place`, this process's own."""
    folder, name = os.path.split(place)
    return f"{folder}/{STAGING}/{os.getpid()}-{name}"


def objection(suffix: str, data: bytes | mmap.mmap) -> str | None:
    """Why a file's content cannot be what its suffix says, at a glance: `efficientsam3 data check` looks closely.

    Args:
        suffix: `.jpg` or `.json`.
        data: the content; of a mapped JPEG only the ends are read.
    """
    if suffix == ".jpg":
        return None if is_jpeg(data) and not is_unfinished(data) else "not a whole JPEG"
    try:
        annotation = pydantic_core.from_json(data[:])
    except ValueError:
        return "not JSON"
    return None if isinstance(annotation, dict) and "annotations" in annotation else "JSON without `annotations`"


def file_objection(path: str) -> str | None:
    """`objection` to a file; an empty or unreadable one has its own."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return objection(os.path.splitext(path)[1], data)
    except ValueError:
        return "empty"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def conflict(place: str, size: int) -> str | None:
    """What speaks against putting a file of `size` bytes in `place`: a whole file of another size is there.

    One that is not whole may be overwritten: a crash of the machine can leave it under its final name.
    """
    if not os.path.exists(place) or os.path.getsize(place) == size or file_objection(place):
        return None
    return f"{place} is there with other content"


def is_in_place(place: str, size: int) -> bool:
    """Whether a file of this size is there. As files only ever appear whole, it need not be done again."""
    try:
        return os.stat(place).st_size == size
    except FileNotFoundError:
        return False


@dataclass
class PairWriter:
    """Publishes files once their partners have come, and tells of those that have none.

    A file is given as the path it waits at, or None if it is in place already.
    """

    layout: Layout
    publish: Callable[[str, str], None]  # (where it waits, its place)
    skip: Callable[[str, str], None]  # (name, reason)
    placed: int = 0
    kept: int = 0
    _waiting: dict[str, tuple[str, str | None]] = field(default_factory=dict)

    def add(self, stem: str, suffix: str, waiting: str | None) -> None:
        """Take a file, whose partner may come later or have come already."""
        other_suffix, other = self._waiting.pop(stem, (suffix, None))
        if other_suffix == suffix:
            self._waiting[stem] = suffix, waiting
        else:
            self._finish(stem, {suffix: waiting, other_suffix: other})

    def has(self, stem: str, suffix: str) -> bool:
        """Whether this very file waits for its partner."""
        return self._waiting.get(stem, ("", None))[0] == suffix

    def close(self) -> list[str]:
        """Deal with files whose partners did not come; returns where the ones left over wait."""
        left_over = []
        for stem, (suffix, waiting) in self._waiting.items():
            if os.path.exists(self.layout.place(stem, _PARTNER[suffix])):
                self._finish(stem, {suffix: waiting})
            else:
                self.skip(stem + suffix, _LACKS[suffix])
                left_over += [waiting] if waiting else []
        self._waiting.clear()
        return left_over

    def _finish(self, stem: str, pair: dict[str, str | None]) -> None:
        for suffix in (".json", ".jpg"):
            waiting = pair.get(suffix)
            if waiting is not None:
                self.publish(waiting, self.layout.place(stem, suffix))
        if any(pair.values()):
            self.placed += 1
        else:
            self.kept += 1
