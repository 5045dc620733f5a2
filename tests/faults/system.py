"""Faults of the system: disks that are full, files that fail, file systems without locks."""

import builtins
import errno
import fcntl
import io
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[Path]:
    """A disk of `size` bytes, mounted at `path`."""
    path.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("a small disk needs root")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def small_shared_memory(size: int) -> None:
    """To inject: /dev/shm has `size` bytes, for this process and those that it starts."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(0x00020000) == 0, "a mount namespace of its own needs root"  # CLONE_NEWNS
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm"], check=True)


def no_locks() -> None:
    """To inject: the file system has no locks."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    fcntl.flock = flock


def fail_fsync(name: str, number: int) -> None:
    """To inject: syncing a file whose name ends in `name` fails, unless it is empty."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(name) and os.fstat(descriptor).st_size:
            raise OSError(number, os.strerror(number))
        real(descriptor)

    os.fsync = fsync


class _Failing(io.FileIO):
    operations: tuple[str, ...] = ()
    number = errno.EIO

    def _fail(self, operation: str) -> None:
        if operation in self.operations:
            raise OSError(self.number, os.strerror(self.number), self.name)

    def readinto(self, buffer: Any) -> int | None:
        self._fail("read")
        return super().readinto(buffer)

    def read(self, size: int | None = -1) -> bytes | None:
        self._fail("read")
        return super().read(-1 if size is None else size)

    def readall(self) -> bytes | None:
        self._fail("read")
        return super().readall()

    def write(self, content: Any) -> int | None:
        self._fail("write")
        return super().write(content)


def fail_file(name: str, operation: str, number: int = errno.EIO) -> None:
    """To inject: reading or writing a binary file whose name ends in `name` fails.

    Args:
        name: end of the file's name.
        operation: "read" or "write".
        number: of the error.
    """
    real = io.open

    class Failing(_Failing):
        operations = (operation,)

    Failing.number = number

    def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else os.fsdecode(file)
        if not path.endswith(name) or "b" not in mode:
            return real(file, mode, buffering, *rest, **options)
        raw = Failing(file, mode.replace("b", ""), opener=options.get("opener"))
        if buffering == 0:
            return raw
        return io.BufferedReader(raw) if mode == "rb" else io.BufferedWriter(raw)

    builtins.open = opened
    io.open = opened
    preadv = os.preadv

    def failing_preadv(descriptor: int, *rest: Any) -> int:
        if operation == "read" and os.readlink(f"/proc/self/fd/{descriptor}").endswith(name):
            raise OSError(number, os.strerror(number))
        return preadv(descriptor, *rest)

    os.preadv = failing_preadv
