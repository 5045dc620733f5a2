"""Reading a shard's committed records front to back, each compared with its checksum."""

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np
import numpy.typing as npt

from efficientsam3.data.images import UNKNOWN_IMAGE, ImageStamp
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import open_regular, unreadable
from efficientsam3.store.binding import Binding
from efficientsam3.store.shards import CRC_BYTES, Shard, file_size

NO_CRC = bytes(CRC_BYTES)  # in rankN-crc32.bin: not known, as where an interrupted copy of that file was continued


@dataclass(frozen=True)
class Record:
    """One committed record."""

    key: bytes
    content: npt.NDArray[np.uint8]  # (record_size,); (0,) where the file is too short
    intact: bool  # whole, and equal to its checksum if there is one
    checked: bool  # whether there is one
    bound: bool
    image: ImageStamp

    def check_intact(self, shard: Shard) -> None:
        """Refuse a damaged record.

        Raises:
            UserError: the record is not intact.
        """
        if not self.intact:
            raise UserError(
                f"The record of image {os.fsdecode(self.key)!r} in {shard.values_path} is damaged: run `efficientsam3 "
                f"store verify --repair {shard.directory}` first."
            )


def read_records(shard: Shard, keys: Sequence[bytes], record_size: int, start: int = 0) -> Iterator[Record]:
    """The records of a shard from record `start` on; one that is not there as a whole is not intact.

    Args:
        shard: the shard.
        keys: ids of its records from the first on.
        record_size: bytes per record.
        start: where to begin.

    Raises:
        UserError: a file cannot be read; nothing is known about its records then.
    """
    binding, there = Binding(shard), file_size(shard.values_path) // record_size
    with ExitStack() as files:
        values, crcs = (
            files.enter_context(file) if (file := open_present(path)) else None
            for path in (shard.values_path, shard.crc_path)
        )
        path = shard.values_path
        try:
            if values is not None:
                values.seek(start * record_size)
            if crcs is not None:
                crcs.seek(start * CRC_BYTES)
            entries = binding.entries(start, len(keys) - start)
            for position, key, entry in zip(range(start, len(keys)), keys[start:], entries, strict=True):
                path = shard.values_path
                whole = values is not None and position < there
                content = np.empty(record_size if whole else 0, np.uint8)
                if values is not None and whole:
                    whole = values.readinto(content.data) == record_size
                path = shard.crc_path
                stored = b"" if crcs is None else crcs.read(CRC_BYTES)
                expected = known_crc(stored) if entry is None else entry.record_crc
                intact = whole and expected in (None, zlib.crc32(content.data))
                image = UNKNOWN_IMAGE if entry is None else entry.image
                yield Record(key, content, intact, expected is not None, entry is not None, image)
        except OSError as error:
            raise unreadable(path, error) from error


def known_crc(stored: bytes) -> int | None:
    """The checksum in these bytes of `rankN-crc32.bin`; None where it is not known."""
    return None if len(stored) < CRC_BYTES or stored == NO_CRC else int.from_bytes(stored, "little")


def open_present(path: Path) -> BufferedReader | None:
    """Open a regular file for reading; None if there is none.

    Raises:
        UserError: it cannot be read.
    """
    try:
        file = open_regular(path)
        assert isinstance(file, BufferedReader)
        return file
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(path, error) from error
