"""Listings of large folders, kept in the user's cache and trusted only while the folder has not changed.

A folder's modification time changes with every file that is added, removed or renamed in it. Reading a million names
over a network takes minutes, checking the folder takes one call.
"""

import hashlib
import logging
import os
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import atomic_path

_FORMAT = 1
# Below this a scan takes less time than the cache.
SMALLEST = 100_000
# A file system's clock ticks in milliseconds or seconds: a change within a tick of the scan would go unnoticed.
_SETTLED_NS = 2_000_000_000

_logger = logging.getLogger("efficientsam3")


class Names(NamedTuple):
    """A listing as arrays."""

    ids: npt.NDArray[np.bytes_]  # (N,) sorted
    codes: npt.NDArray[np.uint8]  # (N,) which suffix each has
    suffixes: list[bytes]


def load(folder: Path) -> Names | None:
    """The cached listing of a folder, if there is one and the folder has not changed."""
    try:
        with np.load(_cache_file(folder), allow_pickle=False) as cache:
            if cache["stamp"].tolist() != _stamp(folder):
                return None
            return Names(cache["ids"], cache["codes"], cache["suffixes"].tolist())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # among them UserError: no home, no cache
        return None


def save(folder: Path, names: Names, stamp: list[int], scanned_ns: int) -> None:
    """Keep a listing, unless it is small or the folder had changed just before it was scanned.

    Args:
        folder: what was listed.
        names: its listing.
        stamp: `stamp_of(folder)` from before the scan.
        scanned_ns: when that stamp was taken.
    """
    if len(names.ids) < SMALLEST or scanned_ns - stamp[1] < _SETTLED_NS:
        return
    try:
        with atomic_path(_cache_file(folder)) as temporary, temporary.open("wb") as file:
            np.savez(file, stamp=stamp, ids=names.ids, codes=names.codes, suffixes=np.array(names.suffixes))
    except UserError as error:
        _logger.info("The listing of %s is not cached: %s", folder, error)


def stamp_of(folder: Path) -> tuple[list[int], int]:
    """What identifies a folder's state, and the present time in ns."""
    return _stamp(folder), time.time_ns()


def _stamp(folder: Path) -> list[int]:
    status = folder.stat()
    return [_FORMAT, status.st_mtime_ns, status.st_ino]


def _cache_file(folder: Path) -> Path:
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise UserError("This user has no home folder: set XDG_CACHE_HOME to a folder for caches.") from error
    return root / "efficientsam3/listings" / f"{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]}.npz"
