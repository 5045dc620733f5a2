"""The files of a shard.

`rankN-keys.txt`: one image id a line. `rankN-values.bin`: fixed-size records in the same order. `rankN-crc32.bin`: a
little-endian uint32 CRC-32 per record (stores in the published format have none). A key line commits its record:
values and checksums beyond the last whole line were left by an interrupted run.
"""

import os
import re
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from efficientsam3.runtime.errors import UserError

CRC_BYTES = 4
_KEYS_NAME = re.compile(r"rank(\d+)-keys\.txt")


@dataclass(frozen=True)
class Record:
    """One committed record."""

    key: bytes
    content: npt.NDArray[np.uint8]  # (record_size,)
    intact: bool  # whole, and equal to its checksum if there is one


@dataclass(frozen=True)
class Shard:
    """Paths of one shard."""

    directory: Path
    rank: int

    @property
    def keys_path(self) -> Path:
        """The key file."""
        return self.directory / f"rank{self.rank}-keys.txt"

    @property
    def values_path(self) -> Path:
        """The record file."""
        return self.directory / f"rank{self.rank}-values.bin"

    @property
    def crc_path(self) -> Path:
        """The checksum file."""
        return self.directory / f"rank{self.rank}-crc32.bin"

    @property
    def statistics_path(self) -> Path:
        """The file of `statistics`."""
        return self.directory / f"rank{self.rank}-statistics.safetensors"

    @property
    def paths(self) -> tuple[Path, ...]:
        """Values, checksums, statistics and keys: the order in which to remove them."""
        return self.values_path, self.crc_path, self.statistics_path, self.keys_path

    def read_keys(self) -> list[bytes]:
        """Ids of the committed records, in record order; a torn last line does not count."""
        return self.keys_path.read_bytes().split(b"\n")[:-1]

    def read_records(self, record_size: int, start: int = 0) -> Iterator["Record"]:
        """The committed records front to back from record `start`; a record that cannot be read whole is not intact."""
        with ExitStack() as files:
            values = files.enter_context(self.values_path.open("rb")) if self.values_path.exists() else None
            crcs = files.enter_context(self.crc_path.open("rb")) if self.crc_path.exists() else None
            if values is not None:
                values.seek(start * record_size)
            if crcs is not None:
                crcs.seek(start * CRC_BYTES)
            for key in self.read_keys()[start:]:
                content = np.empty(record_size, np.uint8)
                whole = values is not None and values.readinto(content.data) == record_size
                checksum = zlib.crc32(content.data).to_bytes(CRC_BYTES, "little")
                yield Record(key, content, whole and (crcs is None or crcs.read(CRC_BYTES) == checksum))

    def check_intact(self, record: "Record") -> None:
        """Refuse a damaged record.

        Raises:
            UserError: the record is not intact.
        """
        if not record.intact:
            raise UserError(
                f"The record of image {os.fsdecode(record.key)!r} in {self.values_path} is damaged: run `efficientsam3 "
                f"store verify --repair {self.directory}` first."
            )

    def check_sizes(self, count: int, record_size: int) -> None:
        """Verify that the other files have at least the `count` committed records.

        Raises:
            UserError: a file is shorter than the keys promise.
        """
        found = self.values_path.stat().st_size // record_size if self.values_path.exists() else 0
        if found < count:
            raise UserError(
                f"{self.values_path} has {found} records of {record_size} bytes where {self.keys_path.name} promises "
                f"{count}: restore it from a copy, or delete this shard's files and embed again."
            )
        if self.crc_path.exists() and self.crc_path.stat().st_size < count * CRC_BYTES:
            raise UserError(
                f"{self.crc_path} is shorter than the {count} checksums that {self.keys_path.name} promises: restore "
                "it from a copy, or delete this shard's files and embed again."
            )


def find_shards(directory: Path) -> Iterator[Shard]:
    """The shards of a store, by rank.

    Raises:
        UserError: a record file lacks its key file.
    """
    ranks = sorted(int(match[1]) for path in directory.iterdir() if (match := _KEYS_NAME.fullmatch(path.name)))
    for path in directory.glob("rank*-values.bin"):
        keys_path = path.with_name(path.name.replace("-values.bin", "-keys.txt"))
        if not keys_path.exists():
            raise UserError(
                f"{path} has no {keys_path.name} next to it, so its records have no names: restore that file from a "
                "copy, or delete this shard's files and embed again."
            )
    return (Shard(directory, rank) for rank in ranks)
