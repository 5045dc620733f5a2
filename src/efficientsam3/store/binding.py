"""`rankN-bound.bin`: what binds each record of a shard to its id, its place, its bytes and its image.

Little-endian: a header of 64 bytes, then an entry of 28 bytes for each record, in the order of the records.

Header: `ES3BOUND`, uint32 version (1), uint32 bytes of an entry, uint64 bytes of a record, uint64 records that were
committed at the least, 16 bytes of the manifest's identity (zeros where there was no manifest), 12 zeros, uint32 CRC-32
of all that.

Entry: uint64 bytes of the key file up to the record's line and with it, uint32 CRC-32 of those bytes, uint32 CRC-32 of
the record, uint32 bytes and uint32 CRC-32 of the image's file (zeros where they are not known), uint32 CRC-32 of the
record's position as uint64 and of all that.

So two neighbouring entries check a line wherever it stands now, and the last entry checks the whole key file at once.
An entry that does not hold itself, such as zeros, and one beyond the file's end say nothing: their records are unbound,
which is not damage. A record without an entry is checked by `rankN-crc32.bin` alone.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from efficientsam3.data.images import UNKNOWN_IMAGE, ImageStamp
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import open_regular, unreadable
from efficientsam3.store.manifest import NO_IDENTITY, store_identity
from efficientsam3.store.shards import Shard, file_size

_MAGIC, _VERSION = b"ES3BOUND", 1
_HEADER = struct.Struct("<8sIIQQ16s12xI")
_ENTRY = struct.Struct("<QIIIII")
_CHECK = struct.Struct("<I")
_IMAGE_SIZES = np.dtype({"names": ["size"], "formats": ["<u4"], "offsets": [16], "itemsize": _ENTRY.size})
ENTRY_BYTES = _ENTRY.size
HEADER_BYTES = _HEADER.size
_ENTRIES_AT_ONCE = 4096


@dataclass(frozen=True)
class Header:
    """What all records of a shard share."""

    record_size: int
    identity: bytes  # of the manifest
    committed: int  # at least so many ids were on the disk

    def pack(self) -> bytes:
        """The header's bytes."""
        fields = (_MAGIC, _VERSION, ENTRY_BYTES, self.record_size, self.committed, self.identity)
        content = _HEADER.pack(*fields, 0)[: -_CHECK.size]
        return content + _CHECK.pack(zlib.crc32(content))

    @classmethod
    def unpack(cls, content: bytes) -> Self | None:
        """The header in these bytes; None if they are damaged or none at all."""
        if len(content) < HEADER_BYTES or zlib.crc32(content[: HEADER_BYTES - 4]) != _CHECK.unpack(content[-4:])[0]:
            return None
        magic, version, entry_size, record_size, committed, identity, _ = _HEADER.unpack(content)
        known = magic == _MAGIC and version == _VERSION and entry_size == ENTRY_BYTES
        return cls(record_size, identity, committed) if known else None


class Entry(NamedTuple):
    """What binds one record."""

    keys_end: int
    keys_crc: int
    record_crc: int
    image: ImageStamp

    def pack(self, position: int) -> bytes:
        """The entry's bytes, for the record at `position`."""
        content = _ENTRY.pack(self.keys_end, self.keys_crc, self.record_crc, *self.image, 0)[: -_CHECK.size]
        return content + _CHECK.pack(_check(position, content))

    @classmethod
    def unpack(cls, position: int, content: bytes) -> Self | None:
        """The entry in these bytes; None if they say nothing about the record at `position`."""
        if len(content) < ENTRY_BYTES:
            return None
        keys_end, keys_crc, record_crc, size, crc, check = _ENTRY.unpack(content)
        if not keys_end or check != _check(position, content[: -_CHECK.size]):
            return None
        return cls(keys_end, keys_crc, record_crc, ImageStamp(size, crc))


def _check(position: int, content: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(position.to_bytes(8, "little")))


class KeyLines:
    """Growing key lines: what the entry of the next record says about them."""

    def __init__(self, lines: bytes = b"") -> None:
        """Begin with the lines that are there."""
        self._end, self._crc = len(lines), zlib.crc32(lines)

    def bind(self, key: bytes, record_crc: int, image: ImageStamp = UNKNOWN_IMAGE) -> Entry:
        """Add a line; returns the entry of its record."""
        line = key + b"\n"
        self._end, self._crc = self._end + len(line), zlib.crc32(line, self._crc)
        return Entry(self._end, self._crc, record_crc, image)


class Binding:
    """What the file says about a shard's records: nothing where there is no file."""

    def __init__(self, shard: Shard) -> None:
        """Read the header.

        Raises:
            UserError: the file cannot be read.
        """
        self.shard = shard
        size = file_size(shard.bound_path)
        self.count = max(0, size - HEADER_BYTES) // ENTRY_BYTES
        self.header = Header.unpack(self._read(0, HEADER_BYTES)) if size else None

    def entry(self, position: int) -> Entry | None:
        """The entry of the record at `position`; None where nothing is known."""
        return next(self.entries(position, 1))

    def entries(self, start: int, count: int) -> Iterator[Entry | None]:
        """The entries of `count` records from `start` on."""
        there = min(start + count, self.count)
        blocks = (
            self._read(HEADER_BYTES + first * ENTRY_BYTES, min(_ENTRIES_AT_ONCE, there - first) * ENTRY_BYTES)
            for first in range(start, there, _ENTRIES_AT_ONCE)
        )
        pieces = (block[at : at + ENTRY_BYTES] for block in blocks for at in range(0, len(block), ENTRY_BYTES))
        for position, piece in zip(range(start, start + count), chain(pieces, repeat(b"")), strict=False):
            yield Entry.unpack(position, piece)

    def image_sizes(self) -> npt.NDArray[np.int64]:
        """Bytes of each record's image, 0 where they are not known; the entries' own checks are left out for speed."""
        content = self._read(HEADER_BYTES, self.count * ENTRY_BYTES) if self.count else b""
        return np.frombuffer(content, _IMAGE_SIZES)["size"].astype(np.int64)

    def _read(self, offset: int, size: int) -> bytes:
        try:
            with open_regular(self.shard.bound_path, buffering=0) as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise unreadable(self.shard.bound_path, error) from error

    def check_layout(self, record_size: int) -> None:
        """Refuse a manifest that is not the records' own: they would be read wrongly.

        Raises:
            UserError: the records were written with another manifest.
        """
        if self.header is None:
            return
        identity = store_identity(self.shard.directory)
        if self.header.record_size != record_size:
            reason = f"its records have {record_size} bytes, these have {self.header.record_size}"
        elif NO_IDENTITY not in (identity, self.header.identity) and identity != self.header.identity:
            reason = "it was changed since"
        else:
            return
        raise UserError(
            f"{self.shard.directory} has another manifest.json than {self.shard.values_path.name} was written with "
            f"({reason}): restore it from a copy. If it is right, delete {self.shard.bound_path.name} and run "
            f"`efficientsam3 store bind {self.shard.directory}`."
        )

    def lines_hold(self, lines: bytes, count: int) -> bool:
        """Whether the key lines are those that the records were written with, as far as that is known.

        Args:
            lines: whole lines of the key file.
            count: of these lines.
        """
        last = min(count, self.count) - 1
        entry = self.entry(last) if last >= 0 else None
        if entry is None:  # the last one that is known, which takes longer to find
            known = ((position, each) for position, each in enumerate(self.entries(0, last)) if each is not None)
            for last, entry in known:  # noqa: B007, both are used below
                pass
        if entry is None:
            return True
        covered = lines[: entry.keys_end]
        whole = len(covered) == entry.keys_end and covered.count(b"\n") == last + 1
        return whole and zlib.crc32(covered) == entry.keys_crc

    def lost(self, count: int, record_size: int) -> bool:
        """Whether there were more than these `count` key lines, whose records are still there."""
        committed = self.header.committed if self.header is not None else 0
        return count < committed and count < min(committed, file_size(self.shard.values_path) // record_size)


def read_bound_lines(shard: Shard, record_size: int) -> tuple[bytes, Binding]:
    """A shard's key lines and its binding, refusing ids that are not its records' own; one that is not bound passes.

    Args:
        shard: the shard.
        record_size: bytes per record.

    Raises:
        UserError: the manifest or the key file was changed, or a file is too short or cannot be read.
    """
    binding = Binding(shard)  # first: a run that is writing may commit more at any moment
    lines = shard.read_lines()
    count = lines.count(b"\n")
    binding.check_layout(record_size)
    repair = (
        f"restore it from a copy, or run `efficientsam3 store verify --repair {shard.directory}`, which puts back "
        "every id that it can"
    )
    if not binding.lines_hold(lines, count):
        raise UserError(f"{shard.keys_path} was changed and no longer names its records in their order: {repair}.")
    if binding.lost(count, record_size):
        assert binding.header is not None
        raise UserError(f"{shard.keys_path} has {count} ids where it had {binding.header.committed}: {repair}.")
    shard.check_values(count, record_size)
    return lines, binding


def recover_keys(binding: Binding, content: bytes) -> list[bytes | None]:
    """The ids of a shard's records in their order, from a key file that was changed; None for an id that is lost.

    Lines are found again wherever they stand, also where their ends were changed.

    Args:
        binding: of the shard.
        content: of its key file.
    """
    found = {}
    for line in re.split(rb"\r\n|\n|\r", content):
        found[len(line) + 1, zlib.crc32(line + b"\n")] = line
    names: list[bytes | None] = [None] * binding.count
    known, end, crc = 0, 0, 0
    for position, entry in enumerate(binding.entries(0, binding.count)):
        if entry is None:
            continue
        piece = content[end : entry.keys_end]
        if zlib.crc32(piece, crc) == entry.keys_crc and piece.count(b"\n") == position + 1 - known:
            names[known : position + 1] = piece.split(b"\n")[:-1]
        elif position == known and zlib.crc32(piece[:-1] + b"\n", crc) == entry.keys_crc:
            names[position] = piece[:-1]
        elif position == known and 0 < entry.keys_end - end <= len(content):
            # A CRC is affine: this is the one that the line would have by itself.
            zeros = bytes(entry.keys_end - end)
            alone = entry.keys_crc ^ zlib.crc32(zeros, crc) ^ zlib.crc32(zeros)
            names[position] = found.get((len(zeros), alone))
        known, end, crc = position + 1, entry.keys_end, entry.keys_crc
    names[known:] = content[end:].split(b"\n")[:-1] if content[:end].endswith(b"\n") or not end else []
    return names
