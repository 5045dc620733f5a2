"""Atomic files and folders, which appear whole or not at all; also hashing and checks."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from efficientsam3.runtime.errors import UserError

_READ_SIZE = 1 << 20


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
        UserError: the folder cannot be written to, or the disk is full.
    """
    try:
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


@contextmanager
def atomic_directory(output: Path, marker: str, kind: str) -> Iterator[Path]:
    """Yield an empty folder next to `output`; it replaces `output` on success and is removed otherwise.

    Args:
        output: the final path.
        marker: name of a file by which an existing folder is known to be replaceable.
        kind: what such a folder is called in the error.

    Raises:
        UserError: `output` is a file or a non-empty folder without `marker`, or it cannot be written.
    """
    if output.exists() and not (output / marker).is_file() and (output.is_file() or any(output.iterdir())):
        raise UserError(f"The output {output} is not a {kind} and would be lost: choose another path.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
            fresh, old = Path(scratch, "new"), Path(scratch, "old")
            fresh.mkdir()
            yield fresh
            if output.exists():
                output.rename(old)
            try:
                fresh.rename(output)
            except OSError:
                if old.exists():
                    old.rename(output)
                raise
    except OSError as error:
        raise UserError(f"Cannot write {output}: {error.strerror}; free some space or choose another path.") from error


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinities, which JSON does not have, are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_READ_SIZE):
            digest.update(chunk)
    return digest.hexdigest()


def require_file(path: Path, what: str, remedy: str) -> Path:
    """Return `path` if it is a file.

    Raises:
        UserError: `path` is not a file; the message names `what` was expected and the `remedy`.
    """
    if not path.is_file():
        raise UserError(f"{what} {path} is not a file: {remedy}.")
    return path
