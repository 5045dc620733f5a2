"""Writing a shard durably: committed records survive a kill, a power cut and a full disk."""

import os
import queue
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt

from efficientsam3.data.images import UNKNOWN_IMAGE, ImageStamp
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import atomic_path, fsync_directory
from efficientsam3.runtime.locks import lock
from efficientsam3.store.binding import (
    ENTRY_BYTES,
    HEADER_BYTES,
    Binding,
    Header,
    KeyLines,
    read_bound_lines,
)
from efficientsam3.store.manifest import store_identity
from efficientsam3.store.shards import CRC_BYTES, Shard, file_size
from efficientsam3.store.statistics import ChannelStatistics, ShardStatistics

_COMMIT_SECONDS = 2.0
_QUEUE_LENGTH = 16
_Record = tuple[str, npt.NDArray[np.uint8], ChannelStatistics | None, ImageStamp]
_Item = _Record | Callable[[], object] | None  # to write, to call, or the end


class ShardWriter:
    """Appends records to one shard: values, checksums and entries first, then, once these are on disk, the keys.

    Opening a shard cuts off what an interrupted run left beyond its last commit.
    """

    def __init__(self, shard: Shard, record_size: int, statistics: ShardStatistics | None = None) -> None:
        """Open or continue a shard, which is bound to the manifest in its folder.

        Args:
            shard: where to write.
            record_size: bytes per record.
            statistics: the statistics of all committed records, which are continued and written after each commit;
                None for no statistics.

        Raises:
            UserError: another process writes to the shard, its files cannot be written, are shorter than its keys
                promise, or the keys are no longer those of its records.
        """
        self._shard = shard
        self._record_size = record_size
        self._statistics = statistics
        self._pending: list[bytes] = []
        with ExitStack() as opened:
            self._keys = opened.enter_context(lock_keys(shard))
            lines, binding = read_bound_lines(shard, record_size)
            self._count = lines.count(b"\n")
            # What the records are bound to stays so.
            self._header = binding.header or Header(record_size, store_identity(shard.directory), self._count)
            self._lines = KeyLines(lines)
            try:
                self._keys.truncate(len(lines))
                self._values = opened.enter_context(_open(shard.values_path, self._count * record_size))
                self._crcs = self._open_crcs(binding)
                if self._crcs is not None:
                    opened.enter_context(self._crcs)
                # What is missing there becomes zeros, which say that nothing is known.
                size = HEADER_BYTES + self._count * ENTRY_BYTES
                self._bound = opened.enter_context(_open(shard.bound_path, size))
                self._write_header(self._count)
                if statistics is not None:
                    # Written now, so that after a kill before the first commit the shard still has the file.
                    assert statistics.records == self._count
                    statistics.write()
                fsync_directory(shard.directory)
            except OSError as error:
                raise _unwritable(shard.directory, error) from error
            self._files = opened.pop_all()

    def append(
        self,
        key: str,
        record: npt.NDArray[np.uint8],
        statistics: ChannelStatistics | None = None,
        image: ImageStamp = UNKNOWN_IMAGE,
    ) -> None:
        """Add one record; committed by `commit`.

        Args:
            key: the image's id.
            record: (record_size,) uint8.
            statistics: its statistics, where they are gathered.
            image: what the image's file held.

        Raises:
            OSError: the disk is full or broken; committed records are untouched.
        """
        assert record.nbytes == self._record_size, (record.nbytes, self._record_size)
        line = os.fsencode(key)
        assert b"\n" not in line
        content = memoryview(np.ascontiguousarray(record).data)
        crc = zlib.crc32(content)
        _write_all(self._values, content)
        if self._crcs is not None:
            _write_all(self._crcs, crc.to_bytes(CRC_BYTES, "little"))
        _write_all(self._bound, self._lines.bind(line, crc, image).pack(self._count + len(self._pending)))
        self._pending.append(line)
        if self._statistics is not None:
            assert statistics is not None
            self._statistics.add(self._pending[-1:], statistics)

    def commit(self) -> None:
        """Make everything appended so far durable; errors as for `append`."""
        if not self._pending:
            return
        for file in (self._values, self._crcs, self._bound):
            if file is not None:
                os.fsync(file.fileno())
        _write_all(self._keys, b"".join(key + b"\n" for key in self._pending))
        os.fsync(self._keys.fileno())
        self._count += len(self._pending)
        self._pending.clear()
        self._write_header(self._count)
        if self._statistics is not None:
            self._statistics.write()

    def close(self) -> None:
        """Release the files and the lock, without committing."""
        self._files.close()

    def _open_crcs(self, binding: Binding) -> BinaryIO | None:
        """The checksum file, completed from the entries; None, and left alone, if it cannot be complete.

        Nothing else may stand for a checksum that is lost: it would say that a good record is damaged.
        """
        path = self._shard.crc_path
        there = min(file_size(path) // CRC_BYTES, self._count)
        lacking = list(binding.entries(there, self._count - there))
        if None in lacking:
            return None
        file = _open(path, there * CRC_BYTES)
        _write_all(file, b"".join(entry.record_crc.to_bytes(CRC_BYTES, "little") for entry in lacking if entry))
        return file

    def _write_header(self, committed: int) -> None:
        """Write how many ids are on the disk; it may lag behind, as it does after a power cut."""
        os.pwrite(self._bound.fileno(), replace(self._header, committed=committed).pack(), 0)


def _open(path: Path, size: int) -> BinaryIO:
    """Open a file to append, at `size` bytes. Not in append mode, in which the header could not be written again.

    Raises:
        OSError: it cannot be written.
        UserError: it is not a regular file.
    """
    file_size(path)
    file: BinaryIO = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", 0)
    file.truncate(size)
    file.seek(size)
    return file


def lock_keys(shard: Shard) -> BinaryIO:
    """Open a shard's key file for appending, for one process at a time; closing it releases the lock.

    Raises:
        UserError: another process has the lock, the file cannot be written, or its file system has no locks.
    """
    file_size(shard.keys_path)  # refuses a FIFO, which opening would wait for
    try:
        file: BinaryIO = shard.keys_path.open("ab", buffering=0)
    except OSError as error:
        raise _unwritable(shard.keys_path, error) from error
    busy = f"Another process writes to {shard.keys_path}: wait for that run to end, or stop it."
    try:
        lock(file.fileno(), shard.keys_path, busy)
        if not os.path.samestat(os.fstat(file.fileno()), shard.keys_path.stat()):  # a repair has just replaced it
            raise UserError(busy)
        os.fsync(file.fileno())  # a killed run may have written ids that no power cut may take once they are counted
    except OSError as error:
        file.close()
        raise _unwritable(shard.keys_path, error) from error
    except BaseException:
        file.close()
        raise
    return file


def rewrite_keys(shard: Shard, keys: Sequence[bytes]) -> None:
    """End a shard after these ids, whose entries must say the same; the caller has the lock.

    Raises:
        OSError: the disk is full or broken; the shard stays as it was.
        UserError: likewise.
    """
    lines = b"".join(key + b"\n" for key in keys)
    header = Binding(shard).header
    if header is not None and header.committed > len(keys):  # first, so that fewer lines are not taken for a loss
        with shard.bound_path.open("r+b", buffering=0) as file:
            file.write(replace(header, committed=len(keys)).pack())
            os.fsync(file.fileno())
    if shard.read_key_file() != lines:
        with atomic_path(shard.keys_path) as temporary:
            temporary.write_bytes(lines)


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"Cannot write to {path}: {error.strerror}; nothing is lost, see that the store's files may be written and the "
        "disk has room, and run it again."
    )


def _write_all(file: BinaryIO, content: bytes | memoryview) -> None:
    """Write all of `content`; a full disk may cut an unbuffered write short, and the next one then raises the error."""
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


class BackgroundWriter:
    """A `ShardWriter` on a thread of its own, behind a bounded queue, committing every few seconds and at the end.

    Use as a context manager: leaving it normally writes and commits everything; leaving it by an exception also
    commits what is in the queue, since those records are whole.
    """

    def __init__(
        self,
        shard: Shard,
        record_size: int,
        statistics: ShardStatistics | None = None,
        commit_seconds: float = _COMMIT_SECONDS,
        queued: int = _QUEUE_LENGTH,
    ) -> None:
        """Open the shard; errors as for `ShardWriter`.

        Args:
            shard: see `ShardWriter`.
            record_size: likewise.
            statistics: likewise.
            commit_seconds: how often to commit.
            queued: how many records may wait; 0 where the caller bounds the memory that they lie in, see `after`.
        """
        self._writer = ShardWriter(shard, record_size, statistics)
        self._commit_seconds = commit_seconds
        self._queue: queue.Queue[_Item] = queue.Queue(queued)
        self._ended = False  # the end of the queue was taken from it
        self._error: Exception | None = None
        self._path = shard.values_path
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def append(
        self,
        key: str,
        record: npt.NDArray[np.uint8],
        statistics: ChannelStatistics | None = None,
        image: ImageStamp = UNKNOWN_IMAGE,
    ) -> None:
        """Queue one record, see `ShardWriter.append`, waiting while the queue is full.

        Raises:
            UserError: an earlier record could not be written.
        """
        self._raise_error()
        self._queue.put((key, record, statistics, image))

    def after(self, done: Callable[[], object]) -> None:
        """Have `done` called, in another thread, once nothing reads the records any more that were appended so far."""
        self._queue.put(done)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._queue.put(None)
        self._thread.join()
        if kind is None:
            self._raise_error()

    def _raise_error(self) -> None:
        if isinstance(self._error, OSError):
            raise UserError(
                f"Cannot write to {self._path}: {self._error.strerror}; everything committed before is safe, make room "
                "and run the same command again."
            ) from self._error
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._drain()
        except Exception as error:  # raised in the producer's thread
            self._error = error
            # Keep emptying the queue, or the producer would wait for ever on a full one.
            while not self._ended:
                item = self._queue.get()
                self._ended = item is None
                if callable(item):
                    item()
        finally:
            self._writer.close()

    def _drain(self) -> None:
        deadline = time.monotonic() + self._commit_seconds
        while True:
            try:
                item = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
                if item is None:
                    self._ended = True
                    self._writer.commit()
                    return
                if callable(item):
                    item()
                else:
                    self._writer.append(*item)
            except queue.Empty:
                pass
            if time.monotonic() >= deadline:
                self._writer.commit()
                deadline = time.monotonic() + self._commit_seconds
