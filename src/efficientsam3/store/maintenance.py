"""Maintaining a store: describing, verifying, repairing and merging it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import fsync_directory
from efficientsam3.store.manifest import MANIFEST_NAME, StoreManifest, read_store_manifest
from efficientsam3.store.shards import Shard, find_shards
from efficientsam3.store.statistics import ShardStatistics
from efficientsam3.store.writer import ShardWriter, lock_keys

Advance = Callable[[int], object]


@dataclass(frozen=True)
class ShardInfo:
    """What a shard contains."""

    rank: int
    records: int
    size: int  # bytes of its files
    uncommitted: int  # bytes beyond the last commit, which the next writer cuts off
    checksums: bool


@dataclass(frozen=True)
class StoreInfo:
    """What a store contains."""

    manifest: StoreManifest
    shards: tuple[ShardInfo, ...]

    @property
    def records(self) -> int:
        """Committed records, an image in two shards counted twice."""
        return sum(shard.records for shard in self.shards)


@dataclass(frozen=True)
class Verification:
    """What `verify_store` found."""

    records: int
    damaged: tuple[tuple[str, str], ...]  # key file's name and image id of each damaged record
    unchecked: int  # records of shards without checksums
    repaired: bool


def open_manifest(directory: Path) -> StoreManifest:
    """The manifest of a store that must have one.

    Raises:
        UserError: the store or its manifest does not exist.
    """
    manifest = read_store_manifest(directory) if directory.is_dir() else None
    if manifest is None:
        raise UserError(f"{directory} has no {MANIFEST_NAME}: give the folder of an embedding store.")
    return manifest


def describe_store(directory: Path) -> StoreInfo:
    """Count records and bytes.

    Raises:
        UserError: there is no store, or a shard has lost its key file.
    """
    manifest = open_manifest(directory)
    return StoreInfo(manifest, tuple(_describe(shard, manifest.record_size) for shard in find_shards(directory)))


def _describe(shard: Shard, record_size: int) -> ShardInfo:
    count = len(shard.read_keys())
    sizes = [path.stat().st_size if path.exists() else 0 for path in shard.paths]
    uncommitted = max(0, sizes[0] - count * record_size)
    return ShardInfo(shard.rank, count, sum(sizes), uncommitted, shard.crc_path.exists())


def verify_store(directory: Path, repair: bool = False, advance: Advance = lambda count: None) -> Verification:
    """Read every record and check its checksum.

    Args:
        directory: the store.
        repair: drop damaged records, so that the next run computes them again. The intact records behind the first
            damaged one of a shard move to a new shard, and the shard ends before it; if that is interrupted, every
            intact record stays in the store.
        advance: called with the number of records just read.

    Raises:
        UserError: there is no store, a shard has lost its key file, or, when repairing, another process writes to it.
    """
    manifest = open_manifest(directory)
    damaged: list[tuple[str, str]] = []
    records = 0
    unchecked = 0
    for shard in tuple(find_shards(directory)):
        count = 0
        bad: list[int] = []
        for record in shard.read_records(manifest.record_size):
            if not record.intact:
                bad.append(count)
                damaged.append((shard.keys_path.name, os.fsdecode(record.key)))
            count += 1
            advance(1)
        records += count
        unchecked += 0 if shard.crc_path.exists() else count
        if repair and bad:
            _cut_off(shard, manifest.record_size, bad[0])
    return Verification(records, tuple(damaged), unchecked, repair and bool(damaged))


def _cut_off(shard: Shard, record_size: int, first_bad: int) -> None:
    """End a shard before record `first_bad`, its later intact records moved to a new shard first."""
    with lock_keys(shard) as keys:
        new = Shard(shard.directory, max(other.rank for other in find_shards(shard.directory)) + 1)
        writer = ShardWriter(new, record_size)
        try:
            for position, record in enumerate(shard.read_records(record_size)):
                if position > first_bad and record.intact:
                    writer.append(os.fsdecode(record.key), record.content)
            writer.commit()
        finally:
            writer.close()
        keys.truncate(sum(len(key) + 1 for key in shard.read_keys()[:first_bad]))
        os.fsync(keys.fileno())


def merge_shards(directory: Path, advance: Advance = lambda count: None) -> int:
    """Move every record into the shard of the lowest rank, one shard after another. If interrupted, run it again.

    Args:
        directory: the store.
        advance: called with the number of records just moved.

    Returns:
        How many shards were merged into the first.

    Raises:
        UserError: another process writes to the store, a record is damaged, or the disk cannot hold one shard more.
    """
    manifest = open_manifest(directory)
    target, *others = tuple(find_shards(directory)) or (None,)
    if target is None or not others:
        return 0
    writer = ShardWriter(target, manifest.record_size)
    try:
        present = set(target.read_keys())
        for shard in others:
            with lock_keys(shard) as keys:
                statistics = _joint_statistics(target, shard, present)
                for record in shard.read_records(manifest.record_size):
                    shard.check_intact(record)
                    if record.key not in present:
                        present.add(record.key)
                        writer.append(os.fsdecode(record.key), record.content)
                    advance(1)
                writer.commit()
                if statistics is not None:
                    statistics.write()
                # From here on the records are the target's: an empty key file commits nothing, and goes last.
                keys.truncate(0)
                os.fsync(keys.fileno())
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
    open_manifest(directory)
    present = {key for shard in find_shards(directory) for key in shard.read_keys()}
    return [image_id for image_id in wanted if os.fsencode(image_id) not in present]
