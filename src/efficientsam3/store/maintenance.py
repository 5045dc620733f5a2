"""Maintaining a store: describing, binding and merging it; `repair` verifies it."""

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import atomic_path, fsync_directory
from efficientsam3.store.binding import Binding, Header, KeyLines, read_bound_lines
from efficientsam3.store.manifest import StoreManifest, open_manifest, store_identity
from efficientsam3.store.scan import read_records
from efficientsam3.store.shards import Shard, file_size, find_shards
from efficientsam3.store.statistics import ShardStatistics
from efficientsam3.store.writer import ShardWriter, lock_keys, rewrite_keys

Advance = Callable[[int], object]


@dataclass(frozen=True)
class ShardInfo:
    """What a shard contains."""

    rank: int
    records: int
    size: int  # bytes of its files
    uncommitted: int  # bytes beyond the last commit, which the next writer cuts off
    checksums: bool
    bound: int | None  # records with an entry in the file of `binding`; None where the keys are no longer theirs


@dataclass(frozen=True)
class StoreInfo:
    """What a store contains."""

    manifest: StoreManifest
    shards: tuple[ShardInfo, ...]

    @property
    def records(self) -> int:
        """Committed records, an image in two shards counted twice."""
        return sum(shard.records for shard in self.shards)


def describe_store(directory: Path) -> StoreInfo:
    """Count records and bytes.

    Raises:
        UserError: there is no store, a file of it cannot be read, or a shard has lost its key file.
    """
    manifest = open_manifest(directory, phrases=True)
    return StoreInfo(manifest, tuple(_describe(shard, manifest.record_size) for shard in find_shards(directory)))


def _describe(shard: Shard, record_size: int) -> ShardInfo:
    binding = Binding(shard)  # first: a run that is writing may commit more at any moment
    lines = shard.read_lines()
    count = lines.count(b"\n")
    sizes = [file_size(path) for path in shard.paths]
    uncommitted = max(0, sizes[0] - count * record_size)
    held = binding.lines_hold(lines, count) and not binding.lost(count, record_size)
    bound = sum(entry is not None for entry in binding.entries(0, count)) if held else None
    return ShardInfo(shard.rank, count, sum(sizes), uncommitted, bool(sizes[1]) or not count, bound)


def bind_store(
    directory: Path, advance: Advance = lambda count: None, published: StoreManifest | None = None
) -> tuple[int, int]:
    """Bind every record to its id, its place and its bytes, as they are now. If interrupted, run it again.

    Args:
        directory: the store.
        advance: called with the number of records just read.
        published: describes a store in the published format, which has no manifest of its own.

    Returns:
        How many records were bound, and how many had been before.

    Raises:
        UserError: there is no store, a record is damaged, the keys are known to have been changed, another process
            writes to the store, or it cannot be written.
    """
    record_size = (published or open_manifest(directory, phrases=True)).record_size
    present = found = 0
    for shard in find_shards(directory):
        with lock_keys(shard):
            lines, binding = read_bound_lines(shard, record_size)
            keys = lines.split(b"\n")[:-1]
            known = sum(entry is not None for entry in binding.entries(0, len(keys)))
            if known < len(keys) or binding.header is None:
                _check_counted(shard, keys)
                header = Header(record_size, store_identity(directory), len(keys))
                _write_entries(shard, keys, binding.header or header, advance)
        found, present = found + len(keys), present + known
    return found - present, present


def _check_counted(shard: Shard, keys: list[bytes]) -> None:
    """Refuse keys that the shard's statistics tell were changed."""
    if not ShardStatistics.agrees(shard, keys):
        raise UserError(
            f"{shard.keys_path} was changed since {shard.statistics_path.name} was written with it: restore it from a "
            f"copy, or delete {shard.statistics_path.name} if you are sure of the ids."
        )


def _write_entries(shard: Shard, keys: list[bytes], header: Header, advance: Advance) -> None:
    lines = KeyLines()
    with atomic_path(shard.bound_path) as temporary, temporary.open("wb") as file:
        file.write(header.pack())
        for position, record in enumerate(read_records(shard, keys, header.record_size)):
            record.check_intact(shard)
            file.write(lines.bind(record.key, zlib.crc32(record.content.data), record.image).pack(position))
            advance(1)


def merge_shards(directory: Path, advance: Advance = lambda count: None) -> int:
    """Move every record into the shard of the lowest rank, one shard after another. If interrupted, run it again.

    Args:
        directory: the store.
        advance: called with the number of records just moved.

    Returns:
        How many shards were merged into the first.

    Raises:
        UserError: another process writes to the store, a record is damaged, keys were changed, or the disk cannot hold
            one shard more. Nothing is lost then.
    """
    manifest = open_manifest(directory, phrases=True)
    target, *others = tuple(find_shards(directory)) or (None,)
    if target is None or not others:
        return 0
    writer = ShardWriter(target, manifest.record_size)
    try:
        present = set(target.read_keys())
        for shard in others:
            with lock_keys(shard):
                statistics = _joint_statistics(target, shard, present)
                lines, _ = read_bound_lines(shard, manifest.record_size)
                for record in read_records(shard, lines.split(b"\n")[:-1], manifest.record_size):
                    record.check_intact(shard)
                    if record.key not in present:
                        present.add(record.key)
                        writer.append(os.fsdecode(record.key), record.content, image=record.image)
                    advance(1)
                writer.commit()
                if statistics is not None:
                    statistics.write()
                # From here on the records are the target's: an empty key file commits nothing, and goes last.
                rewrite_keys(shard, ())
                for path in shard.paths:
                    path.unlink(missing_ok=True)
        fsync_directory(directory)
    except OSError as error:
        raise UserError(
            f"Cannot merge the shards of {directory}: {error.strerror}; nothing is lost, make room and run it again."
        ) from error
    finally:
        writer.close()
    return len(others)


def _joint_statistics(target: Shard, shard: Shard, present: set[bytes]) -> ShardStatistics | None:
    """The statistics of `target` once `shard` is appended; None if the records would have to be read.

    That is also so after an interruption that left some records in both.
    """
    target_keys, keys = target.read_keys(), shard.read_keys()
    first, second = ShardStatistics.read(target, target_keys), ShardStatistics.read(shard, keys)
    if first is None or second is None or first.records < len(target_keys) or second.records < len(keys):
        return None
    if not present.isdisjoint(keys):
        return None
    assert second.records == len(keys), (second.records, len(keys))
    first.add(keys, second.total)
    return first


def missing_ids(directory: Path, wanted: list[str]) -> list[str]:
    """The `wanted` image ids of which the store has no record, in their order.

    Raises:
        UserError: there is no store.
    """
    record_size = open_manifest(directory).record_size
    present: set[bytes] = set()
    for shard in find_shards(directory):
        present.update(read_bound_lines(shard, record_size)[0].split(b"\n"))
    return [image_id for image_id in wanted if os.fsencode(image_id) not in present]
