"""Faults of the system: disks that are full, files that fail, file systems without locks."""

import builtins
import ctypes
import errno
import fcntl
import io
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def need_root() -> None:
    """Skip a row that mounts something, unless this is root."""
    if os.geteuid() != 0:
        pytest.skip("mounts a file system, for which one has to be root")


@contextmanager
def small_disk(path: Path, size: int | str) -> Iterator[Path]:
    """A disk of `size` bytes, or such as 5m, mounted at `path`; for root alone."""
    need_root()
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def small_shared_memory(size: int | str, hide: bool = False) -> None:
    """To inject: /dev/shm has `size` bytes, for this process and those that it starts; with `hide`, it seems large."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, private, recursive = 0x00020000, 1 << 18, 1 << 14
    assert libc.unshare(new_mounts) == 0, os.strerror(ctypes.get_errno())
    assert libc.mount(b"none", b"/", None, private | recursive, None) == 0
    assert libc.mount(b"none", b"/dev/shm", b"tmpfs", 0, f"size={size}".encode()) == 0
    if hide:
        usage = shutil.disk_usage
        shutil.disk_usage = lambda path: usage("/") if str(path) == "/dev/shm" else usage(path)


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
