"""Verifying a store and repairing it, without losing a record that is good."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from efficientsam3.data.images import ImageStamp
from efficientsam3.runtime.errors import UserError
from efficientsam3.store.binding import Binding, recover_keys
from efficientsam3.store.manifest import open_manifest
from efficientsam3.store.scan import read_records
from efficientsam3.store.shards import Shard, file_size, find_shards
from efficientsam3.store.writer import ShardWriter, lock_keys, rewrite_keys

Advance = Callable[[int], object]
IsStale = Callable[[bytes, ImageStamp], bool]


@dataclass(frozen=True)
class Verification:
    """What `verify_store` found."""

    records: int
    damaged: tuple[tuple[str, str], ...]  # key file's name and image id of each record that is damaged or stale
    unchecked: int  # records without a checksum
    unbound: int  # records that nothing binds to their ids
    renamed: tuple[str, ...]  # key files that were changed
    repaired: bool


@dataclass(frozen=True)
class _Examined:
    """One shard as it was found."""

    shard: Shard
    key_file: bytes
    names: list[bytes | None]  # the records' ids; None for one that is lost
    renamed: bool  # the key file does not say so
    bad: list[int]  # positions of records to drop
    intact: int
    unchecked: int
    unbound: int

    def name(self, position: int) -> str:
        """What to call a record."""
        name = self.names[position]
        return f"record {position}, whose id is lost" if name is None else os.fsdecode(name)


def verify_store(
    directory: Path, repair: bool = False, advance: Advance = lambda count: None, is_stale: IsStale | None = None
) -> Verification:
    """Read every record, check its checksum, and check that ids are still those of their records.

    Args:
        directory: the store.
        repair: put changed ids back and drop damaged records, so that the next run computes them again. The intact
            records behind the first damaged one of a shard move to a new shard, and the shard ends before it; if that
            is interrupted, every intact record stays in the store. A record without a checksum is kept.
        advance: called with the number of records just read.
        is_stale: says of an image by its id, and by what its file held when it was embedded, whether it was replaced
            since; its record then counts as damaged.

    Raises:
        UserError: there is no store, its manifest was changed, a file is missing or cannot be read, or, when repairing,
            no record at all is intact, the disk is full, or another process writes to the store. Nothing is lost then.
    """
    manifest = open_manifest(directory, phrases=True)
    shards = tuple(find_shards(directory))
    for shard in shards:
        Binding(shard).check_layout(manifest.record_size)
    examined = [_examine(shard, manifest.record_size, advance, is_stale) for shard in shards]
    if repair:
        _refuse_wholesale(directory, examined)
        for each in examined:
            _repair(each, manifest.record_size)
    damaged = [(each.shard.keys_path.name, each.name(position)) for each in examined for position in each.bad]
    renamed = [each.shard.keys_path.name for each in examined if each.renamed]
    return Verification(
        sum(len(each.names) for each in examined),
        tuple(damaged),
        sum(each.unchecked for each in examined),
        sum(each.unbound for each in examined),
        tuple(renamed),
        repair and bool(damaged or renamed),
    )


def _examine(shard: Shard, record_size: int, advance: Advance, is_stale: IsStale | None) -> _Examined:
    binding = Binding(shard)  # first: a run that is writing may commit more at any moment
    key_file = shard.read_key_file()
    names, renamed = _names(binding, key_file, record_size)
    if names and not shard.values_path.exists():
        raise UserError(
            f"{shard.values_path} is missing, with the records of {len(names)} images: restore it from a copy, or "
            f"delete {shard.keys_path.name} to embed them again."
        )
    bad: list[int] = []
    intact = unchecked = unbound = 0
    for position, record in enumerate(read_records(shard, [name or b"" for name in names], record_size)):
        stale = is_stale is not None and is_stale(record.key, record.image)
        if not record.intact or names[position] is None or stale:
            bad.append(position)
        intact += record.intact
        unchecked += not record.checked
        unbound += not record.bound
        advance(1)
    return _Examined(shard, key_file, names, renamed, bad, intact, unchecked, unbound)


def _names(binding: Binding, key_file: bytes, record_size: int) -> tuple[list[bytes | None], bool]:
    """The ids of a shard's records, and whether the key file says otherwise."""
    lines = key_file[: key_file.rfind(b"\n") + 1]
    count = lines.count(b"\n")
    if binding.lines_hold(lines, count) and not binding.lost(count, record_size):
        return [*lines.split(b"\n")[:-1]], False
    committed = 0 if binding.header is None else binding.header.committed
    names = recover_keys(binding, key_file)
    del names[max(committed, file_size(binding.shard.values_path) // record_size) :]
    while len(names) > committed and names[-1] is None:  # it may never have been committed
        names.pop()
    return names, True


def _refuse_wholesale(directory: Path, examined: Sequence[_Examined]) -> None:
    """Refuse to drop everything, which would not be a repair."""
    count = sum(len(each.names) for each in examined)
    if count and not any(each.intact for each in examined):
        raise UserError(
            f"None of the {count} records of {directory} is intact, so it is rather manifest.json or the checksums "
            "that are wrong: restore these from a copy, or delete the store and embed again."
        )


def _repair(found: _Examined, record_size: int) -> None:
    if not found.bad and not found.renamed:
        return
    shard = found.shard
    with lock_keys(shard):
        if shard.read_key_file() != found.key_file:
            raise UserError(f"{shard.keys_path} was changed during the repair; nothing is lost, run it again.")
        try:
            keep = found.bad[0] if found.bad else len(found.names)
            _move(found, record_size, keep)
            rewrite_keys(shard, [name for name in found.names[:keep] if name is not None])
        except OSError as error:
            raise UserError(
                f"Cannot repair {shard.directory}: {error.strerror}; nothing is lost, make room and run it again."
            ) from error


def _move(found: _Examined, record_size: int, first: int) -> None:
    """Copy the good records from position `first` on to a new shard."""
    names, bad = [name or b"" for name in found.names], {*found.bad}
    if len(bad) == len(names) - first:
        return
    new = _free_shard(found.shard.directory)
    writer = ShardWriter(new, record_size)
    try:
        for position, record in enumerate(read_records(found.shard, names, record_size, first), first):
            if position not in bad:
                record.check_intact(found.shard)
                writer.append(os.fsdecode(record.key), record.content, image=record.image)
        writer.commit()
    finally:
        if not new.read_keys():
            for path in new.paths:  # with room for another try
                path.unlink(missing_ok=True)
        writer.close()


def _free_shard(directory: Path) -> Shard:
    """A shard without records: the last one, if an interrupted repair left it so, or a new one."""
    *_, last = find_shards(directory)
    return Shard(directory, last.rank + bool(last.read_keys()))
