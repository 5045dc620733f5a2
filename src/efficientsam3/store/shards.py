"""The files of a shard.

`rankN-keys.txt`: one image id a line. `rankN-values.bin`: fixed-size records in the same order. `rankN-crc32.bin`: a
little-endian uint32 CRC-32 per record (stores in the published format have none). `rankN-bound.bin`: what binds each
record to its id, see `binding`. A key line commits its record: what the other files hold beyond the last whole line was
left by an interrupted run.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import open_regular, read_bytes, unreadable

CRC_BYTES = 4
MOST_ID_BYTES = 4096  # no path is longer
_MOST_KEY_BYTES = 1 << 31  # a hundred million ids; a sparse file may claim terabytes
_KEYS_NAME = re.compile(r"rank(\d+)-keys\.txt")


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
    def bound_path(self) -> Path:
        """The file of `binding`."""
        return self.directory / f"rank{self.rank}-bound.bin"

    @property
    def statistics_path(self) -> Path:
        """The file of `statistics`."""
        return self.directory / f"rank{self.rank}-statistics.safetensors"

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file: the order in which to remove them."""
        return self.values_path, self.crc_path, self.bound_path, self.statistics_path, self.keys_path

    def read_lines(self) -> bytes:
        """The key lines of the committed records; a torn last line does not count.

        Raises:
            UserError: the key file cannot be read.
        """
        content = self.read_key_file()
        return content[: content.rfind(b"\n") + 1]

    def read_key_file(self) -> bytes:
        """All of the key file; errors as for `read_lines`."""
        try:
            return read_bytes(self.keys_path, _MOST_KEY_BYTES)
        except OSError as error:
            raise unreadable(self.keys_path, error) from error

    def read_keys(self) -> list[bytes]:
        """Ids of the committed records, in record order; errors as for `read_lines`."""
        return self.read_lines().split(b"\n")[:-1]

    def check_values(self, count: int, record_size: int) -> None:
        """Verify that the record file has at least the `count` committed records.

        Raises:
            UserError: it has fewer, or cannot be read.
        """
        found = file_size(self.values_path) // record_size
        if found < count:
            raise UserError(
                f"{self.values_path} has {found} records of {record_size} bytes where {self.keys_path.name} promises "
                f"{count}: restore it from a copy, or run `efficientsam3 store verify --repair {self.directory}`, "
                "which drops those that it lacks, and embed again."
            )


def file_size(path: Path) -> int:
    """Bytes of a file, 0 if there is none.

    Raises:
        UserError: it cannot be read, or is not a regular file.
    """
    try:
        with open_regular(path, buffering=0) as file:
            return file.seek(0, 2)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise unreadable(path, error) from error


def find_shards(directory: Path) -> Iterator[Shard]:
    """The shards of a store, by rank.

    Raises:
        UserError: the folder cannot be read, a record file lacks its key file, or a shard's name is not one that a
            writer gives.
    """
    try:
        names = sorted(path.name for path in directory.iterdir())
    except OSError as error:
        raise unreadable(directory, error) from error
    shards = {name: Shard(directory, int(match[1])) for name in names if (match := _KEYS_NAME.fullmatch(name))}
    for name, shard in shards.items():
        if shard.keys_path.name != name:
            raise UserError(
                f"{directory / name} is not the name of a shard's key file: rename the shard's files to "
                f"{shard.keys_path.name} and so on."
            )
    for name in names:
        keys_name = name.removesuffix("-values.bin") + "-keys.txt"
        if re.fullmatch(r"rank.*-values\.bin", name) and keys_name not in names:
            raise UserError(
                f"{directory / name} has no {keys_name} next to it, so its records have no names: restore that file "
                "from a copy, or delete this shard's files and embed again."
            )
    return iter(sorted(shards.values(), key=lambda shard: shard.rank))
