"""Writing a shard durably: committed records survive a kill, a power cut and a full disk."""

import fcntl
import os
import queue
import threading
import time
import zlib
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import fsync_directory
from efficientsam3.store.shards import CRC_BYTES, Shard
from efficientsam3.store.statistics import ChannelStatistics, ShardStatistics

_COMMIT_SECONDS = 2.0
_QUEUE_LENGTH = 16
_Item = tuple[str, npt.NDArray[np.uint8], ChannelStatistics | None]


class ShardWriter:
    """Appends records to one shard: values and checksums first, then, once these are on disk, the keys.

    Opening a shard cuts off what an interrupted run left beyond its last commit.
    """

    def __init__(self, shard: Shard, record_size: int, statistics: ShardStatistics | None = None) -> None:
        """Open or continue a shard.

        Args:
            shard: where to write.
            record_size: bytes per record.
            statistics: the statistics of all committed records, which are continued and written after each commit;
                None for no statistics.

        Raises:
            UserError: another process writes to the shard, or its files are shorter than its keys promise.
        """
        self._shard = shard
        self._record_size = record_size
        self._statistics = statistics
        self._pending: list[bytes] = []
        self._keys = lock_keys(shard)
        try:
            committed = shard.read_keys()
            shard.check_sizes(len(committed), record_size)
            self._keys.truncate(sum(len(key) + 1 for key in committed))
            self._values = self._open(shard.values_path, len(committed) * record_size)
            self._crcs = self._open(shard.crc_path, len(committed) * CRC_BYTES)
            if statistics is not None:
                # Written now, so that after a kill before the first commit the shard still has the file.
                assert statistics.records == len(committed)
                statistics.write()
        except BaseException:
            self._keys.close()
            raise
        fsync_directory(shard.directory)

    def append(self, key: str, record: npt.NDArray[np.uint8], statistics: ChannelStatistics | None = None) -> None:
        """Add one record: (record_size,) uint8, and its statistics where they are gathered; committed by `commit`.

        Raises:
            OSError: the disk is full or broken; committed records are untouched.
        """
        assert record.nbytes == self._record_size, (record.nbytes, self._record_size)
        assert "\n" not in key
        content = memoryview(np.ascontiguousarray(record).data)
        _write_all(self._values, content)
        _write_all(self._crcs, zlib.crc32(content).to_bytes(CRC_BYTES, "little"))
        self._pending.append(key.encode())
        if self._statistics is not None:
            assert statistics is not None
            self._statistics.add(self._pending[-1:], statistics)

    def commit(self) -> None:
        """Make everything appended so far durable."""
        if not self._pending:
            return
        os.fsync(self._values.fileno())
        os.fsync(self._crcs.fileno())
        _write_all(self._keys, b"".join(key + b"\n" for key in self._pending))
        os.fsync(self._keys.fileno())
        self._pending.clear()
        if self._statistics is not None:
            self._statistics.write()

    def close(self) -> None:
        """Release the files and the lock, without committing."""
        for file in (self._values, self._crcs, self._keys):
            file.close()

    @staticmethod
    def _open(path: Path, size: int) -> BinaryIO:
        file: BinaryIO = path.open("ab", buffering=0)
        file.truncate(size)
        return file


def lock_keys(shard: Shard) -> BinaryIO:
    """Open a shard's key file for appending, for one process at a time; closing it releases the lock.

    Raises:
        UserError: another process has the lock.
    """
    file: BinaryIO = shard.keys_path.open("ab", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UserError(
            f"Another process writes to {shard.keys_path}: wait for that run to end, or stop it."
        ) from error
    return file


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
    ) -> None:
        """Open the shard; arguments and errors as for `ShardWriter`."""
        self._writer = ShardWriter(shard, record_size, statistics)
        self._commit_seconds = commit_seconds
        self._queue: queue.Queue[_Item | None] = queue.Queue(_QUEUE_LENGTH)
        self._error: Exception | None = None
        self._path = shard.values_path
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def append(self, key: str, record: npt.NDArray[np.uint8], statistics: ChannelStatistics | None = None) -> None:
        """Queue one record, see `ShardWriter.append`, waiting while the queue is full.

        Raises:
            UserError: an earlier record could not be written.
        """
        self._raise_error()
        self._queue.put((key, record, statistics))

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
            while self._queue.get() is not None:
                pass
        finally:
            self._writer.close()

    def _drain(self) -> None:
        deadline = time.monotonic() + self._commit_seconds
        while True:
            try:
                item = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
                if item is None:
                    self._writer.commit()
                    return
                self._writer.append(*item)
            except queue.Empty:
                pass
            if time.monotonic() >= deadline:
                self._writer.commit()
                deadline = time.monotonic() + self._commit_seconds
