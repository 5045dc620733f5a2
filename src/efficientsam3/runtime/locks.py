"""Files that one process at a time may hold; the system lets go of them however that process ends."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from efficientsam3.runtime.errors import UserError

_held: set[int] = set()  # descriptors of `locked`, by this process


def lock(descriptor: int, path: Path, busy: str) -> None:
    """Lock an open file for this process, until it is closed, without waiting.

    Args:
        descriptor: of the file; a child that inherits it holds the lock, too.
        path: the file's name in errors.
        busy: the sentence where another process has the lock.

    Raises:
        UserError: another process has it, or the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(busy) from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be locked ({error.strerror}), so nothing would keep a second run from writing there: "
            "choose a folder on a file system with locks, such as a local disk."
        ) from error


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file, which says who holds it, while the body runs; missing folders are made.

    Args:
        path: the lock file. It stays, since removing it would let two processes lock two files of one name.
        what: what it guards, e.g. "OUTPUT output/stage1/student".

    Raises:
        UserError: the file cannot be written, another process has the lock, or the file system has no locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise UserError(f"Cannot write to {what}: {error.strerror}; choose another folder.") from error
    _held.add(descriptor)
    try:
        holder = os.pread(descriptor, 300, 0).decode(errors="replace").strip() or "which is just starting"
        lock(descriptor, path, f"{what} is in use by another run ({holder}): wait for it to end, or stop it.")
        _name_holder(descriptor, what)
        yield
    finally:
        if descriptor in _held:  # else this is a forked child, which has let go of it
            _held.remove(descriptor)
            os.close(descriptor)


def _name_holder(descriptor: int, what: str) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    except OSError as error:
        raise UserError(f"Cannot write to {what}: {error.strerror}; make room, or choose another folder.") from error


def _leave_to_parent() -> None:
    """In a forked child: a reader of images that outlives its parent must not keep the parent's locks."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
