"""Putting images and their annotations into place: whole, in pairs, in the split that follows from the id.

    OUTPUT/images/{train,val}/ID.jpg
    OUTPUT/annotations/{train,val}/ID.json

Files are staged in a hidden folder next to their destination and renamed once both halves of a pair are there, the
annotation first, so that an image never appears without its annotation.
"""

import contextlib
import mmap
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from efficientsam3.data.jpeg import is_jpeg, is_unfinished
from efficientsam3.data.sa1b.tars import SAFE_NAME
from efficientsam3.data.split import SPLITS, split_of
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import open_regular

KINDS = {".jpg": "images", ".json": "annotations"}  # by suffix
_PARTNER = {".jpg": ".json", ".json": ".jpg"}
_LACKS = {".jpg": "an image without annotation", ".json": "an annotation without image"}
STAGING = ".staging"
_STAGED = re.compile(r"\d+-" + SAFE_NAME.pattern)  # see `staged_path`


@dataclass(frozen=True)
class Destination:
    """A dataset's folders, and which image goes where."""

    output: Path
    val_ratio: float

    def folders(self) -> list[Path]:
        """The four folders."""
        return [self.output / kind / split for kind in KINDS.values() for split in SPLITS]

    def prepare(self) -> None:
        """Make the folders, with an empty staging folder in each.

        Raises:
            UserError: a folder cannot be made, or something else than staged files is in a staging folder.
        """
        for folder in self.folders():
            staging = folder / STAGING
            try:
                staging.mkdir(parents=True, exist_ok=True)
                if staging.is_symlink():
                    raise UserError(f"{staging} is a link, where this command keeps unfinished files: remove the link.")
                _remove_staged(staging)
                left = next(os.scandir(staging), None)
            except OSError as error:
                raise UserError(
                    f"Cannot make the folder {error.filename or staging} ({error.strerror}): remove what is there, "
                    "allow writing, or choose another --output."
                ) from error
            if left is not None:
                raise UserError(f"{left.path} was not put there by this command: move it out of {STAGING}.")

    def remove_staged(self) -> None:
        """Remove the staging folders with what this run left in them, as far as that can be done."""
        for folder in self.folders():
            with contextlib.suppress(OSError):
                _remove_staged(folder / STAGING)
                (folder / STAGING).rmdir()

    def place(self, stem: str, suffix: str) -> str:
        """Where a file belongs."""
        return f"{self.output}/{KINDS[suffix]}/{split_of(stem.encode(), self.val_ratio)}/{stem}{suffix}"


def _remove_staged(staging: Path) -> None:
    """Remove the files that `staged_path` names, and nothing else."""
    for entry in list(os.scandir(staging)):
        if _STAGED.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            os.unlink(entry.path)


def staged_path(place: str) -> str:
    """Where this process stages a file for `place`."""
    folder, name = os.path.split(place)
    return f"{folder}/{STAGING}/{os.getpid()}-{name}"


class Refused(Exception):
    """A file is not used; the message is the reason."""


class Unreadable(Refused):
    """The system does not give the file: it may be whole."""


def check_content(suffix: str, data: bytes | mmap.mmap) -> None:
    """Check quickly whether content can be what its suffix says; `efficientsam3 data check` checks in full.

    Args:
        suffix: `.jpg` or `.json`.
        data: the content; little more than both ends is read, for mapped files.

    Raises:
        Refused: the content does not fit the suffix.
    """
    if suffix == ".jpg":
        if not is_jpeg(data) or is_unfinished(data):
            raise Refused("not a whole JPEG")
        return
    whole = data[:64].lstrip().startswith(b"{") and data[-64:].rstrip().endswith(b"}")
    if not whole or data.find(b'"annotations"') < 0:
        raise Refused("not a whole annotation file")


def check_file(path: str) -> None:
    """`check_content` of a file.

    Raises:
        Unreadable: the system does not give it.
        Refused: the file is empty, or not what its suffix says.
    """
    try:
        with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            check_content(os.path.splitext(path)[1], data)
    except ValueError as error:  # of mapping
        raise Refused("empty") from error
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror})") from error


def is_in_place(place: str, size: int, same: Callable[[], bool] | None = None) -> bool:
    """Whether a whole file of this size is in its place, so that it need not be placed again.

    Args:
        place: where the file belongs.
        size: bytes that it has.
        same: compares the content, where the source is about to be deleted; costs reading both.

    Raises:
        Refused: a whole file of other content is there, or one that cannot be read, a link or a folder. (One that is
            not whole, such as the zeros that a crash of the machine can leave, may be overwritten.)
    """
    try:
        status = os.lstat(place)
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(status.st_mode):
        raise Refused(f"{place} is a link, or not a plain file")
    try:
        check_file(place)
    except Unreadable as reason:
        raise Refused(f"{place} {reason}") from reason
    except Refused:
        return False
    if status.st_size == size and (same is None or same()):
        return True
    raise Refused(f"{place} is there with other content")


def is_whole(path: str) -> bool:
    """Whether a file is there and passes `check_file`."""
    try:
        check_file(path)
    except Refused:
        return False
    return True


@dataclass(frozen=True)
class Half:
    """An image or an annotation to be placed."""

    stem: str
    suffix: str
    place: str
    waiting: str | None  # where it waits, None if it is in place already


@dataclass
class PairWriter:
    """Publishes halves once their partners have come, and reports those without a partner."""

    destination: Destination
    publish: Callable[[str, str], None]  # (where it waits, its place)
    skip: Callable[[str, str], None]  # (name, reason)
    placed: int = 0
    kept: int = 0
    places: list[str] = field(default_factory=list)  # of both
    _waiting: dict[str, Half] = field(default_factory=dict)

    def add(self, half: Half) -> None:
        """Take a half, whose partner may come later or have come already."""
        partner = self._waiting.pop(half.stem, None)
        if partner is None:
            self._waiting[half.stem] = half
        else:
            self._finish(half, partner)

    def has(self, stem: str, suffix: str) -> bool:
        """Whether this half is waiting for its partner."""
        half = self._waiting.get(stem)
        return half is not None and half.suffix == suffix

    def close(self) -> list[str]:
        """Publish or skip the halves whose partners did not come; returns the staged files of those skipped."""
        left_over = []
        for half in self._waiting.values():
            if is_whole(self.destination.place(half.stem, _PARTNER[half.suffix])):
                self._finish(half)
            else:
                self.skip(half.stem + half.suffix, _LACKS[half.suffix])
                left_over += [half.waiting] if half.waiting else []
        self._waiting.clear()
        return left_over

    def _finish(self, *pair: Half) -> None:
        for half in sorted(pair, key=lambda half: half.suffix == ".jpg"):
            if half.waiting is not None:
                self.publish(half.waiting, half.place)
            self.places.append(half.place)
        if any(half.waiting for half in pair):
            self.placed += 1
        else:
            self.kept += 1
