"""Files of users: only regular ones are read, and what is written appears whole or not at all."""

import errno
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from efficientsam3.runtime.errors import UnreadableError, UserError

_READ_SIZE = 1 << 20
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: Path | str, buffering: int = -1) -> BinaryIO:
    """Open a file for reading if it is a regular one or a link to one: a FIFO would block, a device may never end.

    Raises:
        OSError: it cannot be opened, or is not a regular file; `strerror` says which.
    """
    _check_regular(os.stat(path), path)  # before opening, which some devices take for an order
    return open(path, "rb", buffering, opener=_open_regular)


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # it may have become a FIFO just now
    try:
        _check_regular(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(status: os.stat_result, path: Path | str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", str(path))


def read_bytes(path: Path | str, limit: int) -> bytes:
    """Read a whole regular file of at most `limit` bytes.

    Raises:
        OSError: it cannot be read, is not a regular file, or has more bytes, which are then not read.
    """
    with open_regular(path, buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"{size} bytes, more than the {limit} that are read", str(path))
        return file.read()


def unreadable(path: Path | str, error: OSError) -> UnreadableError:
    """The sentence for a file or folder that cannot be read."""
    return UnreadableError(
        f"{path} cannot be read ({error.strerror}): check that it is there and that you may read it."
    )


def fsync_directory(directory: Path) -> None:
    """Make a rename in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it is synced to disk and renamed to `path`.

    If the body raises, the temporary file is removed and `path` stays as it was. Missing parent folders are made.

    Raises:
        UserError: the folder cannot be written to, the disk is full, or a device, a FIFO or a folder is at `path`.
    """
    try:
        if path.exists():
            _check_regular(path.stat(), path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}; choose another output path.") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes files private to the user; outputs follow the umask like any other file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
        fsync_directory(path.parent)
    except OSError as error:
        raise UserError(
            f"Cannot write {path}: {error.strerror}; nothing was left there, free some space or choose another path."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(directory: Path, names: re.Pattern[str]) -> None:
    """Remove the temporary files that `atomic_path` left where its process was killed.

    Args:
        directory: the folder, where nobody may be writing.
        names: of the files that would have been written, in full.

    Raises:
        UserError: the folder cannot be written to.
    """
    leftovers = re.compile(rf"\.(?:{names.pattern})\.[a-z0-9_]{{8}}\.tmp")
    try:
        for path in directory.iterdir():
            if leftovers.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                path.unlink()
    except OSError as error:
        raise UserError(f"Cannot write to {directory}: {error.strerror}; choose another folder.") from error


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; see `to_json`."""
    write_text(path, to_json(value))


def to_json(value: Any) -> str:
    """`value` as indented JSON. NaN and infinities, which JSON does not have, are refused."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open_regular(path, buffering=0) as file:
        while chunk := file.read(_READ_SIZE):
            digest.update(chunk)
    return digest.hexdigest()


def require_file(path: Path, what: str, remedy: str) -> Path:
    """Return `path` if it is a file.

    Raises:
        UserError: `path` is not a file; the message names `what` was expected and the `remedy`.
    """
    try:
        found = path.is_file()
    except OSError as error:  # a part that is too long, a folder that may not be entered
        raise UserError(f"{what} {str(path)[:200]} is not a possible path ({error.strerror}): {remedy}.") from error
    if not found:
        raise UserError(f"{what} {path} is not a file: {remedy}.")
    return path
