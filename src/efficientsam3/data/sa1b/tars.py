"""Reading untrusted tars: only plain files come out, and headers are checked."""

import errno
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficientsam3.runtime.files import open_regular

MAX_MEMBER_BYTES = 64 << 20
MAX_MEMBERS = 10_000_000
_MAX_HEADER_BYTES = 1 << 20
_BLOCK = 512
_CHUNK = 1 << 20
AFTER_END = "(after the end)"  # stands for the name of what follows a whole archive
_MACOS = re.compile(r"\._.*|\.DS_Store")  # which it adds to archives, with nothing that is missed
# The file names that a dataset may have; SA-1B's are sa_<number>.
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True)
class Member:
    """A plain file in an open tar."""

    name: str  # the last part of its path, matching SAFE_NAME
    size: int  # bytes, at most MAX_MEMBER_BYTES
    offset: int  # where its data begin
    descriptor: int

    def read(self) -> bytes | None:
        """The content, or None if the tar ends before it does."""
        data = os.pread(self.descriptor, self.size, self.offset)
        return data if len(data) == self.size else None


class _HeaderFile:
    """A file for `tarfile` to read headers from, with a limit: `tarfile` loads as much as a header claims."""

    def __init__(self, file: Any) -> None:
        self.seek = file.seek
        self.tell = file.tell
        self._read = file.read
        self.next_member()

    def next_member(self) -> None:
        self._left = _MAX_HEADER_BYTES

    def read(self, size: int) -> bytes:
        self._left -= size
        if size < 0 or self._left < 0:
            raise tarfile.ReadError(f"a header of more than {_MAX_HEADER_BYTES} bytes")
        data: bytes = self._read(size)
        return data


def read_members(path: Path, skip: Callable[[str, str], None]) -> Iterator[Member]:
    """Yield the plain files of a tar in their order, reading only headers.

    Args:
        path: an uncompressed tar.
        skip: called with name and reason for everything skipped: links, devices, sparse files, paths
            that are absolute or contain `..`, hidden files, sizes beyond MAX_MEMBER_BYTES, everything from a damaged
            header on, and what follows the end. Folders and the files that macOS adds are skipped silently.

    Raises:
        OSError: the file cannot be opened or read, or is not a regular one.
    """
    with open_regular(path, buffering=0) as file:
        try:
            headers = _HeaderFile(file)
            with tarfile.open(fileobj=headers, mode="r:") as tar:  # type: ignore[call-overload]
                for info in _infos(tar, headers):
                    reason = _objection(info)
                    if reason:
                        skip(info.name, reason)
                    elif not info.isdir() and not _MACOS.fullmatch(_base_name(info.name)):
                        yield Member(_base_name(info.name), info.size, info.offset_data, file.fileno())
                reason = _bad_end(file.fileno(), tar.offset)
                if not reason and _has_data(file.fileno(), tar.offset):
                    skip(AFTER_END, f"from byte {tar.offset} on: another archive or file, not read")
        except (tarfile.TarError, RecursionError, ValueError, OverflowError) as error:
            reason = f"not a tar, or damaged ({error}): the rest was not read"
        if reason:
            skip("", reason)


def _infos(tar: tarfile.TarFile, headers: _HeaderFile) -> Iterator[tarfile.TarInfo]:
    for _ in range(MAX_MEMBERS):
        before = tar.offset
        info = tar.next()
        if info is None:
            return
        # Python releases before 2025-08 follow negative sizes backwards, for ever.
        if info.size < 0 or tar.offset < before:
            raise tarfile.ReadError("a header claims a negative size")
        yield info
        tar.members.clear()  # type: ignore[attr-defined]  # kept by tarfile for look-ups that never come
        headers.next_member()
    raise tarfile.ReadError(f"more than {MAX_MEMBERS} members")


def _objection(info: tarfile.TarInfo) -> str | None:
    if info.name.startswith("/") or ".." in info.name.split("/") or "\\" in info.name:
        return "its path leads out of the tar"
    if info.isdir():
        return None
    if not info.isreg() or info.issparse():
        return "a link" if info.issym() or info.islnk() else "not a plain file"
    if info.size > MAX_MEMBER_BYTES:
        return f"{info.size} bytes, more than the {MAX_MEMBER_BYTES} that an image may have"
    name = _base_name(info.name)
    if SAFE_NAME.fullmatch(name) or _MACOS.fullmatch(name):
        return None
    return "a hidden file" if name.startswith(".") else "its name has unexpected characters"


def _base_name(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _bad_end(descriptor: int, offset: int) -> str | None:
    """What is wrong with the end: `tarfile` also stops at a bad header, but a whole tar ends with a block of zeros."""
    if os.pread(descriptor, _BLOCK, offset) == bytes(_BLOCK):
        return None
    return f"damaged or cut short at byte {offset}: the rest was not read"


def _has_data(descriptor: int, offset: int) -> bool:
    """Whether anything but zeros follows, such as a second tar appended by `cat`. Holes of sparse files are skipped."""
    while True:
        try:
            offset = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left, or nothing
                return False
            raise
        chunk = os.pread(descriptor, _CHUNK, offset)
        if chunk.count(0) != len(chunk):
            return True
        offset += max(len(chunk), 1)
