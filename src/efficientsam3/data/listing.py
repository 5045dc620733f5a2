"""Listings: which images a split has, as arrays rather than strings, so that millions of them are small and shared.

`data.layouts` says where a dataset has its images; hidden files are never listed.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from efficientsam3.data import listing_cache
from efficientsam3.data.annotations.coco import image_names
from efficientsam3.data.find import is_image_name
from efficientsam3.data.listing_cache import Names
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import unreadable

_CHUNK = 100_000


class ImageListing:
    """Images in the order of their ids.

    The ids live in one tensor: forked workers share its pages, spawned ones get it through shared memory, and neither
    touches a reference count in it. A million SA-1B ids take 11 MB.
    """

    def __init__(self, root: Path, names: Iterable[bytes]) -> None:
        """Sort and check the names.

        Args:
            root: what the names are relative to.
            names: file names or relative paths with their suffixes, as the file system writes them.

        Raises:
            UserError: two files have the same id, or a name cannot stand in a line of UTF-8 text.
        """
        ids, codes, suffixes = _collect(names)
        order = np.argsort(ids, kind="stable")
        self._set(root, Names(ids[order], codes[order], suffixes))
        self._check_text()
        self._check_unique()

    def _set(self, root: Path, names: Names) -> None:
        self.root = root
        self._ids, self._codes = ids_to_tensor(names.ids), torch.from_numpy(names.codes)
        self._suffixes = names.suffixes

    @classmethod
    def of_folder(cls, folder: Path) -> "ImageListing":
        """The images in one folder, possibly missing or empty; from the cache if that is up to date.

        Raises:
            UserError: as for the constructor.
        """
        return cls._cached(folder, folder, names_in) if folder.is_dir() else cls(folder, ())

    @classmethod
    def of_instances(cls, folder: Path, instances: Path) -> "ImageListing":
        """The images that COCO's instances file names, whether `folder` has them or not; from the cache as well.

        Raises:
            UserError: as for the constructor, or the file cannot be read or is not in COCO's format.
        """
        return cls._cached(folder, instances, lambda path: map(os.fsencode, image_names(path)))

    @classmethod
    def _cached(cls, root: Path, source: Path, read: Callable[[Path], Iterable[bytes]]) -> "ImageListing":
        cached = listing_cache.load(source)
        if cached is not None:
            return cls._sorted(root, cached)
        stamp, now = listing_cache.stamp_of(source)
        listing = cls(root, read(source))
        listing_cache.save(source, listing._names(), stamp, now)
        return listing

    @classmethod
    def _sorted(cls, root: Path, names: Names) -> "ImageListing":
        listing = cls.__new__(cls)
        listing._set(root, names)
        return listing

    def _names(self, count: int | None = None) -> Names:
        return Names(self.ids[:count], self._codes.numpy()[:count], self._suffixes)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> npt.NDArray[np.bytes_]:
        """(N,) bytes, sorted, unique: each image's id as the file system writes it (UTF-8)."""
        return ids_from_tensor(self._ids)

    def id(self, index: int) -> str:
        """The id of one image."""
        return os.fsdecode(self.ids[index])

    def path(self, index: int) -> Path:
        """The file of one image."""
        return self.root / os.fsdecode(self.ids[index] + self._suffixes[int(self._codes[index])])

    def first(self, count: int) -> "ImageListing":
        """The first `count` images, or all when it is 0."""
        if count == 0 or count >= len(self):
            return self
        ids, codes, suffixes = self._names(count)
        return self._sorted(self.root, Names(ids.copy(), codes.copy(), suffixes))

    def _check_text(self) -> None:
        """Check that ids can be lines of key files: UTF-8 without line breaks."""
        for start in range(0, len(self), _CHUNK):
            table = self._ids[start : start + _CHUNK]
            if bool(((table == 0x0A) | (table == 0x0D) | (table >= 0x80)).any()):
                for index in range(start, min(start + _CHUNK, len(self))):
                    self._check_name(self.ids[index], self.path(index))

    @staticmethod
    def _check_name(image_id: bytes, path: Path) -> None:
        try:
            bad = bool({"\n", "\r"} & set(image_id.decode("utf-8")))
        except UnicodeDecodeError:
            bad = True
        if bad:
            raise UserError(f"Image {str(path)!r} has a line break or bytes that are not UTF-8 in its name: rename it.")

    def _check_unique(self) -> None:
        ids = self.ids
        repeated = np.flatnonzero(ids[1:] == ids[:-1])
        if len(repeated):
            first = int(repeated[0])
            raise UserError(
                f"Images {self.path(first)} and {self.path(first + 1)} have the same id {self.id(first)}: "
                "rename or remove one of them."
            )


def check_disjoint(train: ImageListing, val: ImageListing) -> None:
    """Refuse a dataset with an image in both splits, since embeddings are stored by id.

    Raises:
        UserError: an id is in both splits; the message names both files of the first.
    """
    common = np.intersect1d(train.ids, val.ids, assume_unique=True)
    if len(common):
        first, second = (part.path(int(np.searchsorted(part.ids, common[0]))) for part in (train, val))
        raise UserError(
            f"Image id {os.fsdecode(common[0])} is in both splits, as {first} and {second} ({len(common)} such "
            "ids in all): remove one of each pair."
        )


def names_in(folder: Path) -> Iterator[bytes]:
    """File names of the images in one folder, unordered.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        with os.scandir(os.fsencode(folder)) as entries:
            yield from (entry.name for entry in entries if is_image_name(entry.name) and entry.is_file())
    except OSError as error:
        raise unreadable(folder, error) from error


def _collect(names: Iterable[bytes]) -> Names:
    """Collect names as arrays, in chunks: a million bytes objects would take ten times the memory."""
    suffixes: dict[bytes, int] = {}
    stems, codes = [np.array([], dtype="S1")], [np.array([], dtype=np.uint8)]
    iterator = iter(names)
    while chunk := [os.path.splitext(name) for name in islice(iterator, _CHUNK)]:
        stems.append(np.array([stem for stem, _ in chunk], dtype="S"))
        codes.append(np.array([suffixes.setdefault(suffix, len(suffixes)) for _, suffix in chunk], dtype=np.uint8))
    return Names(np.concatenate(stems), np.concatenate(codes), list(suffixes))


def ids_to_tensor(ids: npt.NDArray[np.bytes_]) -> torch.Tensor:
    """(N,) fixed-width bytes to (N, width) uint8, without a copy where the array is contiguous.

    As a tensor, forked workers share its pages, and spawned ones get it through shared memory.
    """
    contiguous = np.ascontiguousarray(ids)
    return torch.from_numpy(contiguous.view(np.uint8).reshape(len(ids), ids.dtype.itemsize))


def ids_from_tensor(table: torch.Tensor) -> npt.NDArray[np.bytes_]:
    """(N, width) uint8 to (N,) fixed-width bytes, a view."""
    values: npt.NDArray[np.uint8] = table.numpy()
    return values.view(f"S{table.shape[1]}").reshape(-1)
