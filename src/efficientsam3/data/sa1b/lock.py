"""One process at a time in a folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from efficientsam3.runtime.errors import UserError


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Create `folder` and lock it for this process; the system releases the lock however the process ends.

    Args:
        folder: what to lock, by a hidden file `.<what>.lock` in it.
        what: the name of the command.

    Raises:
        UserError: the folder cannot be written to, or another process has the lock.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / f".{what}.lock", os.O_CREAT | os.O_RDWR, 0o666)
    except OSError as error:
        raise UserError(f"Cannot write to --output {folder}: {error.strerror}; choose another folder.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(f"--output {folder} is in use by another {what}: wait for it, or end it.") from error
    finally:
        os.close(descriptor)
