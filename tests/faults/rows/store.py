"""Embedding stores: nothing that happens to one file of a store costs a record whose bytes are good."""

import errno
import json
import os
import shlex
import shutil
import signal
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from faults.fault import Fault, Outcome, Place, Run, refused, works
from faults.system import fail_file, fail_fsync, no_locks, small_disk, small_shared_memory

RECORD = 4 + 2 * 64 * 16 * 16  # bytes
COUNT = 16  # images
_VERIFY = "store verify {store}"
_REPAIR = "store verify --repair {store}"
_INFO = "store info {store}"
_MERGE = "store merge-shards {store}"
_CONVERT = "store convert {store} --codec int8 --output {root}/new"


def records(store: Path) -> dict[str, bytes]:
    """Id -> record of everything that a store's key files name, read as the published format says."""
    found = {}
    for path in sorted(store.glob("rank*-keys.txt")):
        lines = path.read_bytes().split(b"\n")[:-1]
        values = path.with_name(path.name.replace("-keys.txt", "-values.bin"))
        content = values.read_bytes() if lines else b""
        for number, line in enumerate(lines):
            found[line.decode(errors="replace")] = content[number * RECORD : (number + 1) * RECORD]
    return found


def file(store: Path, rank: int, kind: str) -> Path:
    """A file of a shard."""
    return store / f"rank{rank}-{kind}"


def unbind(store: Path) -> None:
    """Make it a store of an older version, in which nothing binds records to their ids."""
    for path in store.glob("rank*-bound.bin"):
        path.unlink()


def edit_manifest(store: Path, **changes: object) -> None:
    """Change keys of a store's manifest."""
    path = store / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip(path: Path, position: int) -> None:
    """Change a byte of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0x55
    path.write_bytes(content)


def damage(store: Path, rank: int = 0, position: int = 0) -> None:
    """Damage a record."""
    flip(file(store, rank, "values.bin"), position * RECORD + 99)


def freeze(folder: Path) -> None:
    """Let nobody write to a folder and its files."""
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)


def export_with(place: Place, *flags: object) -> list[str]:
    """The line that exports, with more flags before its --opts."""
    words = place.export
    where = words.index("--opts")
    return [*words[:where], *map(str, flags), *words[where:]]


def another_image(place: Place) -> None:
    """Add an image to the dataset of a finished export."""
    assert place.store.is_dir()
    shutil.copyfile(place.image, place.images / "sa_900.jpg")
    annotation = place.data / "annotations" / "train" / f"{place.image.stem}.json"
    if annotation.exists():
        shutil.copyfile(annotation, annotation.with_name("sa_900.json"))


def ends(_: Place, outcome: Outcome) -> None:
    """Any of the ends that a command may come to, but no traceback."""
    assert not outcome.hung, outcome
    assert outcome.code in (0, 1, 2), outcome
    assert "Traceback (most recent call last)" not in outcome.err, outcome


# Commands that keep every record


def _kept(command: str, expect: Callable[[Place, Outcome], None]) -> Callable[[Place, Run], None]:
    """Run a command that must lose no record, whatever it says."""

    def attempt(place: Place, run: Run) -> None:
        before = records(place.store)
        expect(place, run(command))
        after = records(place.store)
        lost = [name for name in before if after.get(name) != before[name]]
        assert not lost, f"lost: {lost}"

    return attempt


def _all_but(place: Place, count: int, before: dict[str, bytes]) -> None:
    after = records(place.store)
    assert sum(after.get(name) == content for name, content in before.items()) >= len(before) - count
    assert all(before[name] == content for name, content in after.items() if name in before)


# Checksum files


def _crc_lost(place: Place, rank: int = 0) -> None:
    file(place.store, rank, "crc32.bin").unlink()


def _crc_lost_and_exported(place: Place, run: Run) -> None:
    _crc_lost(place)
    another_image(place)
    works()(place, run(place.export))


def _no_false_checksums(place: Place, run: Run) -> None:
    _crc_lost_and_exported(place, run)
    checksums = file(place.store, 0, "crc32.bin")
    content = checksums.read_bytes() if checksums.exists() else b""
    values = file(place.store, 0, "values.bin").read_bytes()
    for number in range(len(content) // 4):
        stored = int.from_bytes(content[4 * number : 4 * number + 4], "little")
        assert stored == zlib.crc32(values[number * RECORD : (number + 1) * RECORD]), f"false checksum {number}"


def _then_verified(place: Place, run: Run) -> None:
    _crc_lost_and_exported(place, run)
    works(f"{COUNT + 1} records, 0 damaged")(place, run(_VERIFY))


def _then_repaired(place: Place, run: Run) -> None:
    before = records(place.store)
    _crc_lost_and_exported(place, run)
    run(_REPAIR)
    _all_but(place, 0, before)
    assert len(records(place.store)) == COUNT + 1


def _nothing_to_export(place: Place, run: Run) -> None:
    _crc_lost(place)
    works()(place, run(place.export))
    works("0 damaged")(place, run(_VERIFY))


def _merged_without_checksums(rank: int, place: Place, run: Run) -> None:
    before = records(place.store)
    _crc_lost(place, rank)
    works()(place, run(_MERGE))
    works(f"{COUNT} records, 0 damaged")(place, run(_VERIFY))
    assert records(place.store) == before


def _crc_emptied(place: Place) -> None:
    for rank in (0, 1):
        file(place.store, rank, "crc32.bin").write_bytes(b"")


def _crc_garbage(place: Place) -> None:
    file(place.store, 0, "crc32.bin").write_bytes(bytes(range(200, 200 + 4 * 9)))


# Key files


def _newline_flipped(place: Place) -> None:
    keys = file(place.store, 0, "keys.txt")
    flip(keys, keys.read_bytes().index(b"\n"))


def _lines_swapped(place: Place) -> None:
    keys = file(place.store, 0, "keys.txt")
    lines = keys.read_bytes().splitlines(keepends=True)
    lines[1], lines[2] = lines[2], lines[1]
    keys.write_bytes(b"".join(lines))


def _put_back(spoil: Callable[[Place], None], place: Place, run: Run) -> None:
    before = records(place.store)
    spoil(place)
    works()(place, run(_REPAIR))
    assert records(place.store) == before
    works("0 damaged")(place, run(_VERIFY))


def _keys_emptied(place: Place) -> None:
    file(place.store, 0, "keys.txt").write_bytes(b"")


def _values_stay(spoil: Callable[[Place], None], place: Place, run: Run) -> None:
    values = file(place.store, 0, "values.bin")
    before = values.read_bytes()
    spoil(place)
    refused("rank0-keys.txt")(place, run(place.export))
    assert values.read_bytes() == before


def _crlf(place: Place) -> None:
    keys = file(place.store, 0, "keys.txt")
    keys.write_bytes(keys.read_bytes().replace(b"\n", b"\r\n"))


def _first_key(key: bytes, place: Place) -> None:
    unbind(place.store)
    keys = file(place.store, 0, "keys.txt")
    keys.write_bytes(key + b"\n" + keys.read_bytes().split(b"\n", 1)[1])


def _odd_keys(place: Place) -> None:
    unbind(place.store)
    keys = file(place.store, 0, "keys.txt")
    rest = keys.read_bytes().split(b"\n")[4:]
    keys.write_bytes(b"\n".join([b"", b"../../../etc/passwd", b"a\0b", rest[0], *rest]))


def _foreign_key_damaged(place: Place) -> None:
    _first_key(b"sa_\xff\xfe", place)
    damage(place.store)


def _only_the_damaged(place: Place, run: Run) -> None:
    before = records(place.store)
    _foreign_key_damaged(place)
    works()(place, run(_REPAIR))
    _all_but(place, 1, before)
    assert len(records(place.store)) == COUNT - 1


def _more_keys(place: Place) -> Path:
    return file(place.store, 2, "keys.txt")


# Manifests


def _giant(place: Place) -> None:
    edit_manifest(place.store, embed_dim=10**9, embed_size=10**6)


def _without_projection(place: Place) -> None:
    unbind(place.store)
    edit_manifest(place.store, codec="pca8-int8")


def _numbers_as_strings(place: Place) -> None:
    edit_manifest(place.store, embed_dim="64", seed="0")


def _halved(place: Place) -> None:
    edit_manifest(place.store, embed_dim=32)


def _halved_unbound(place: Place) -> None:
    unbind(place.store)
    _halved(place)


def _manifest_is_a_folder(place: Place) -> None:
    manifest = place.store / "manifest.json"
    manifest.unlink()
    manifest.mkdir()


def _brackets(place: Place) -> None:
    (place.store / "manifest.json").write_text("[" * 100_000)


def _published(place: Place) -> None:
    unbind(place.store)
    for path in (*place.store.glob("*crc32*"), *place.store.glob("*statistics*"), place.store / "manifest.json"):
        path.unlink()


# Names


def _renamed(place: Place) -> None:
    for path in [*place.store.glob("rank0-*")]:
        path.rename(path.with_name(path.name.replace("rank0", "rank007")))


def _thirty_digits(place: Place) -> None:
    for path in [*place.store.glob("rank1-*")]:
        path.rename(path.with_name(path.name.replace("rank1", f"rank{'9' * 30}")))


def _in_folder(name: str, *words: str) -> Callable[[Place, Run], None]:
    return partial(_named_so, name, words)


def _named_so(name: str, words: tuple[str, ...], place: Place, run: Run) -> None:
    shutil.copytree(place.store, place.root / name)
    works(*([name] if "info" in words else []))(place, run([*words[:2], place.root / name, *words[2:]]))


# Modes


def _frozen(place: Place) -> None:
    freeze(place.store)


def _frozen_damaged(place: Place) -> None:
    damage(place.store)
    freeze(place.store)


def _mode(name: str, place: Place) -> None:
    (place.store / name).chmod(0)


def _continued_conversion(place: Place, run: Run) -> None:
    works()(place, run(_CONVERT))
    new = file(place.root / "new", 0, "keys.txt")
    freeze(new.parent)
    outcome = run(_CONVERT, unprivileged=True)
    refused("rank0-keys.txt", "Permission denied")(place, outcome)


def _read_only_export(place: Place, run: Run) -> None:
    another_image(place)
    freeze(place.store)
    outcome = run(place.export, unprivileged=True)
    refused("embeddings", "Permission denied")(place, outcome)


def _without_statistics(place: Place) -> None:
    for path in place.store.glob("*statistics*"):
        path.unlink()
    freeze(place.store)


# Disks


def _on_a_small_disk(command: str, words: tuple[str, ...], room: int, place: Place, run: Run) -> None:
    """The store lies on a disk with so many bytes free."""
    used = sum(-(-path.stat().st_size // 4096) * 4096 for path in place.store.iterdir())
    before = records(place.store)
    copy = place.root / "copy"
    shutil.move(place.store, copy)
    with small_disk(place.store, used + room) as disk:
        shutil.copytree(copy, disk, dirs_exist_ok=True)
        refused(*words)(place, run(command))
        shutil.rmtree(copy)
        shutil.copytree(disk, copy)
    shutil.copytree(copy, place.store, dirs_exist_ok=True)
    _all_but(place, 1, before)


def _repair_on_a_small_disk(place: Place, run: Run) -> None:
    damage(place.store)
    _on_a_small_disk(_REPAIR, ("No space left", "nothing is lost"), 3 * RECORD, place, run)
    before = records(place.store)
    works()(place, run(_REPAIR))
    _all_but(place, 1, before)


def _conversion_to_a_small_disk(place: Place, run: Run) -> None:
    with small_disk(place.root / "new", 100_000):
        refused("No space left")(place, run(_CONVERT))


def _export_again(inject: Callable[[], None], words: tuple[str, ...], place: Place, run: Run) -> None:
    """An export on a disk that fails, and again on one that does not: every image once."""
    refused(*words)(place, run(place.export, inject=inject, timeout=60))
    works()(place, run(place.export))
    keys = [line for path in place.store.glob("rank*-keys.txt") for line in path.read_bytes().split(b"\n")[:-1]]
    assert len(keys) == len({*keys}) == COUNT
    works(f"{COUNT} records, 0 damaged")(place, run(_VERIFY))


def _last_commit(name: str, number: int) -> None:
    """To inject: syncing fails, and time passes so slowly that nothing is committed before the end."""
    monotonic = time.monotonic
    time.monotonic = lambda: monotonic() / 1000
    fail_fsync(name, number)


def _new_export(inject: Callable[[], None], *words: str) -> Callable[[Place, Run], None]:
    return partial(_export_after, inject, words)


def _export_in_little_memory(place: Place, run: Run) -> None:
    (place.root / "teacher").mkdir()
    line = [*place.export, "DATA.NUM_WORKERS", 2]
    refused("/dev/shm")(place, run(line, inject=partial(small_shared_memory, 1 << 18)))
    works()(place, run(place.export))


def _export_after(inject: Callable[[], None], words: tuple[str, ...], place: Place, run: Run) -> None:
    (place.root / "teacher").mkdir()  # so that no finished one is copied there
    _export_again(inject, words, place, run)


# Kills


def _killed(
    command: str, moments: tuple[float, ...], spoil: Callable[[Place], None] | None, place: Place, run: Run
) -> None:
    lost = 0 if spoil is None else 1
    if spoil is not None:
        spoil(place)
    before = records(place.store)
    for moment in moments:
        run(command, signals=[(moment, signal.SIGKILL)])
        _all_but(place, lost, before)
    works()(place, run(command))
    _all_but(place, lost, before)
    works("0 damaged")(place, run(_VERIFY))


def _conversion_killed(place: Place, run: Run) -> None:
    command = _CONVERT
    for moment in (0.1, 0.2, 0.3, 0.45):
        run(command, signals=[(moment, signal.SIGKILL)])
    works()(place, run(command))
    works(f"{COUNT} records, 0 damaged")(place, run("store verify {root}/new"))


# Two at once


def _two(place: Place, run: Run, *lines: list[str]) -> str:
    script = " ".join(f"efficientsam3 {shlex.join(line)} & " for line in lines) + "wait"
    outcome = run(["bash", "-c", script], program=True, timeout=240)
    assert outcome.code == 0, outcome
    assert "Traceback" not in outcome.err, outcome
    return outcome.err


def _two_repairs(place: Place, run: Run) -> None:
    damage(place.store)
    before = records(place.store)
    line = ["store", "verify", "--repair", str(place.store)]
    _two(place, run, line, line)
    _all_but(place, 1, before)
    works("0 damaged")(place, run(_VERIFY))


def _train_while_exporting(place: Place, run: Run) -> None:
    before = records(place.store)
    another_image(place)
    _two(place, run, place.export, place.train)
    assert before.items() <= records(place.store).items()


def _two_exports(place: Place, run: Run) -> None:
    (place.root / "teacher").mkdir()
    _two(place, run, place.export, place.export)
    works()(place, run(place.export))


def _once_each(place: Place, run: Run) -> None:
    _two_exports(place, run)
    assert len(records(place.store)) == COUNT
    works("0 damaged")(place, run(_VERIFY))


# Images


def _two_swap(place: Place) -> None:
    assert place.store.is_dir()
    first, second, *_ = sorted(place.images.glob("*.jpg"))
    assert first.stat().st_size != second.stat().st_size
    aside = place.images / "aside"
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def _named_and_left_out(place: Place, run: Run) -> None:
    assert place.store.is_dir()
    flip(place.image, 15)  # its density, which no decoder looks at
    works(place.image.stem, "replaced")(place, run(place.train))


def _stale_dropped(place: Place, run: Run) -> None:
    before = records(place.store)
    names = [path.stem for path in sorted(place.images.glob("*.jpg"))[:2]]
    _two_swap(place)
    line = ["store", "verify", place.store, "--data-path", place.data, "--repair"]
    works(*names)(place, run(line))
    after = records(place.store)
    assert {*before} - {*after} == {*names}
    works()(place, run(place.export))
    after = records(place.store)
    assert len(after) == COUNT
    assert all(after[name] != before[name] for name in names)


def _deleted(place: Place) -> None:
    place.image.unlink()


def _full_of_nan(place: Place) -> None:
    """NaN in every embedding, with checksums that fit, in a store of an older version."""
    unbind(place.store)
    for rank in (0, 1):
        values = file(place.store, rank, "values.bin")
        content = values.read_bytes()
        nan = b"\x00\x7e" * ((RECORD - 4) // 2)
        new = [content[number * RECORD : number * RECORD + 4] + nan for number in range(len(content) // RECORD)]
        values.write_bytes(b"".join(new))
        file(place.store, rank, "crc32.bin").write_bytes(
            b"".join(zlib.crc32(each).to_bytes(4, "little") for each in new)
        )


def _export_line(*flags: object) -> Callable[[Place, Run], None]:
    return partial(_checked, flags)


def _checked(flags: tuple[object, ...], place: Place, run: Run) -> None:
    _full_of_nan(place)
    refused("stored embeddings differ")(place, run(export_with(place, *flags)))


# Binding


def _unbound(place: Place, run: Run) -> None:
    unbind(place.store)
    works("store bind")(place, run(_INFO))
    works("0 damaged", "store bind")(place, run(_VERIFY))
    works(f"{COUNT} records bound")(place, run("store bind {store}"))
    outcome = run(_VERIFY)
    works("0 damaged")(place, outcome)
    assert "store bind" not in outcome.out, outcome


def _bound_garbage(place: Place) -> None:
    file(place.store, 0, "bound.bin").write_bytes(bytes(500))
    flip(file(place.store, 1, "bound.bin"), 70)


def _fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _values_missing(place: Place) -> None:
    file(place.store, 0, "values.bin").rename(place.root / "elsewhere")


def _repair_without_new_keys(place: Place, run: Run) -> None:
    """The repair fails at its last step."""
    damage(place.store, position=3)
    before = records(place.store)
    inject = partial(fail_fsync, "rank2-keys.txt", errno.ENOSPC)
    refused("No space left", "nothing is lost")(place, run(_REPAIR, inject=inject))
    _all_but(place, 1, before)
    works()(place, run(_REPAIR))
    _all_but(place, 1, before)
    assert len(records(place.store)) == COUNT - 1


def _links(place: Place) -> None:
    elsewhere = place.root / "elsewhere"
    elsewhere.mkdir()
    for path in [*place.store.glob("rank1-*")]:
        path.rename(elsewhere / path.name)
        path.symlink_to(elsewhere / path.name)


_EVALUATE = "evaluate s={store} --data {data} --decoder {sam3} --max-images 2 --out {root}/report"
_ADVISE = "store advise {store} --count 4"
_BRIEFLY = "{train} TRAIN.EPOCHS 1 DATA.NUM_SAMPLES 4 DATA.BATCH_SIZE 4"
_PATIENT = {"timeout": 180}
_PUBLISHED = "store statistics {store} --published 64 16"
_UNREADABLE = refused("values.bin", "Input/output")
_EIO = {"inject": partial(fail_file, "values.bin", "read")}
_USER = {"unprivileged": True}

ROWS = [
    Fault("S1b", "a checksum file lost, one more image exported: no false checksums", _no_false_checksums, slow=True),
    Fault("S1c", "... then verify", _then_verified, slow=True),
    Fault("S1d", "... then verify --repair", _then_repaired),
    Fault("S1e", "a checksum file lost; an export with nothing to do", _nothing_to_export, slow=True),
    Fault("S1f", "the first shard's checksum file lost; merge-shards, verify", partial(_merged_without_checksums, 0)),
    Fault("store-h41", "the second's; merge-shards, verify", partial(_merged_without_checksums, 1), slow=True),
    Fault("store-h1", "a checksum file lost: verify", _VERIFY, works("0 damaged"), _crc_lost),
    Fault("S8a", "empty checksum files: verify --repair", _kept(_REPAIR, works()), None, _crc_emptied),
    Fault("S2a", "a newline of the keys flipped: verify", _VERIFY, works("rank0-keys.txt", code=1), _newline_flipped),
    Fault("S2b", "... train", "{train}", refused("rank0-keys.txt", "changed"), _newline_flipped),
    Fault("S3", "two lines of the keys swapped: verify", _VERIFY, works("rank0-keys.txt", code=1), _lines_swapped),
    Fault("store-h2", "keys with CRLF: train", _BRIEFLY, ends, _crlf, slow=True, options=_PATIENT),
    Fault("store-h3", "empty, repeated keys, paths, NUL: convert", _CONVERT, ends, _odd_keys, slow=True),
    Fault(
        "store-h4",
        "a key of 3 MB: train",
        _BRIEFLY,
        ends,
        partial(_first_key, b"a" * 3_000_000),
        slow=True,
        options=_PATIENT,
    ),
    Fault(
        "store-h5",
        "a key that is not UTF-8, of a damaged record: verify",
        _VERIFY,
        works("1 damaged", code=1),
        _foreign_key_damaged,
        slow=True,
    ),
    Fault("store-h6", "... --repair", _only_the_damaged),
    Fault("store-h7", "... convert", _CONVERT, ends, _foreign_key_damaged, slow=True),
    Fault("store-h8", "... merge-shards", _kept(_MERGE, ends), None, partial(_first_key, b"sa_\xff\xfe"), slow=True),
    Fault(
        "S9verify", "a manifest with dimensions of 1e9: verify", _VERIFY, refused("manifest.json"), _giant, slow=True
    ),
    Fault("S9r", "... verify --repair", _REPAIR, refused("manifest.json"), _giant, slow=True),
    Fault("store-h9", "... info", _INFO, ends, _giant, slow=True),
    Fault("store-h10", "... merge-shards", _MERGE, refused(), _giant, slow=True),
    Fault("store-h11", "... advise", _ADVISE, refused(), _giant, slow=True),
    Fault("store-h12", "... statistics", "store statistics {store}", ends, _giant, slow=True),
    Fault(
        "S10",
        "a manifest with a pca codec, without projection: convert",
        _CONVERT,
        refused("manifest.json", "projection"),
        _without_projection,
        slow=True,
    ),
    Fault("S10b", "... evaluate", _EVALUATE, refused("manifest.json", "projection"), _without_projection, slow=True),
    Fault("S11", "a manifest with half the channels: verify --repair", _REPAIR, refused("manifest.json"), _halved),
    Fault(
        "S13",
        "manifest.json is a folder: verify",
        _VERIFY,
        refused("manifest.json", "folder"),
        _manifest_is_a_folder,
        slow=True,
    ),
    Fault("store-h13", "a manifest with strings for numbers: verify", _VERIFY, ends, _numbers_as_strings, slow=True),
    Fault("store-h14", "a manifest of 100000 brackets: info", _INFO, refused("manifest.json"), _brackets, slow=True),
    Fault("S17", "a shard called rank007: verify", _VERIFY, refused("rank007-keys.txt"), _renamed, slow=True),
    Fault(
        "store-h17",
        "a shard called rank999...9 (30 digits): verify",
        _VERIFY,
        works("0 damaged"),
        _thirty_digits,
        slow=True,
    ),
    Fault(
        "S18",
        "rank2-keys.txt is a folder: verify",
        _VERIFY,
        refused("rank2-keys.txt", "folder"),
        lambda place: _more_keys(place).mkdir(),
        slow=True,
    ),
    Fault(
        "S19",
        "rank2-keys.txt is a FIFO: info",
        _INFO,
        refused("rank2-keys.txt", "FIFO"),
        lambda place: os.mkfifo(_more_keys(place)),
        slow=True,
        options={"timeout": 20},
    ),
    Fault(
        "store-h15",
        "a sparse record file of 8 TB: info",
        _INFO,
        works(),
        lambda place: os.truncate(file(place.store, 0, "values.bin"), 8 << 40),
        slow=True,
    ),
    Fault(
        "store-h16",
        "... verify",
        _VERIFY,
        works("0 damaged"),
        lambda place: os.truncate(file(place.store, 0, "values.bin"), 8 << 40),
        slow=True,
    ),
    Fault(
        "K1",
        "export onto a file system without locks",
        "{export}",
        refused("lock"),
        another_image,
        slow=True,
        options={"inject": no_locks},
    ),
    Fault("K5", "verify --repair, disk full while moving records", _repair_on_a_small_disk),
    Fault(
        "K2b",
        "verify --repair with damage, read-only",
        _REPAIR,
        refused("rank0-keys.txt", "Permission denied"),
        _frozen_damaged,
        options=_USER,
        slow=True,
    ),
    Fault("store-h25", "... without damage", _REPAIR, works("0 damaged"), _frozen, slow=True, options=_USER),
    Fault(
        "K2c",
        "merge-shards, read-only",
        _MERGE,
        refused("rank0-keys.txt", "Permission denied"),
        _frozen,
        slow=True,
        options=_USER,
    ),
    Fault("K3", "convert continued in a read-only store", _continued_conversion, slow=True),
    Fault("K4", "export continued in a read-only store", _read_only_export, slow=True),
    Fault(
        "K4b",
        "unreadable keys: info",
        _INFO,
        refused("rank0-keys.txt", "Permission denied"),
        partial(_mode, "rank0-keys.txt"),
        slow=True,
        options=_USER,
    ),
    Fault(
        "K4c",
        "unreadable records: train",
        "{train}",
        refused("rank0-values.bin", "Permission denied"),
        partial(_mode, "rank0-values.bin"),
        slow=True,
        options=_USER,
    ),
    Fault(
        "K4d",
        "unreadable records: verify --repair",
        _REPAIR,
        refused("rank0-values.bin", "Permission denied"),
        partial(_mode, "rank0-values.bin"),
        options=_USER,
    ),
    Fault(
        "K4e",
        "an unreadable folder: info",
        _INFO,
        refused("Permission denied"),
        partial(_mode, ""),
        slow=True,
        options=_USER,
    ),
    Fault(
        "store-h26",
        "statistics, which are lacking, read-only",
        "store statistics {store} --data-path {data}",
        ends,
        _without_statistics,
        slow=True,
        options=_USER,
    ),
    Fault(
        "store-h27",
        "convert into a read-only folder",
        "store convert {store} --codec int8 --output {data}/new",
        refused("Permission denied"),
        lambda place: freeze(place.data),
        slow=True,
        options=_USER,
    ),
    Fault("store-h18", "convert onto a full disk", _conversion_to_a_small_disk, slow=True),
    Fault(
        "store-h19",
        "merge-shards on a full disk",
        partial(_on_a_small_disk, _MERGE, ("No space left", "nothing is lost"), 3 * RECORD),
        slow=True,
    ),
    Fault("store-h20", "convert killed four times", _conversion_killed, slow=True),
    Fault(
        "store-h21",
        "merge-shards killed five times",
        partial(_killed, _MERGE, (0.05, 0.1, 0.15, 0.2, 0.3), None),
        slow=True,
    ),
    Fault(
        "store-h22",
        "verify --repair killed four times",
        partial(_killed, _REPAIR, (0.05, 0.1, 0.15, 0.25), lambda place: damage(place.store)),
        slow=True,
    ),
    Fault("store-h23", "two verify --repair at once", _two_repairs, slow=True),
    Fault("store-h24", "a shard of links: merge-shards", _kept(_MERGE, works()), None, _links, slow=True),
    Fault(
        "Q-pub2",
        "statistics --published 64 24 1e30 pad",
        f"{_PUBLISHED} {10**30} pad",
        refused(str(10**30)),
        _published,
        slow=True,
    ),
    Fault(
        "store-h30",
        "statistics --published garbage",
        f"{_PUBLISHED} x pad",
        refused("--published"),
        _published,
        slow=True,
    ),
    Fault("U-shme", "export with a small /dev/shm", _export_in_little_memory, slow=True),
    Fault("U-swap", "two images swap their names: export", "{export}", refused("sa_", "replaced"), _two_swap),
    Fault(
        "EIO1",
        "EIO at fsync of records: export",
        _new_export(partial(_last_commit, "values.bin", errno.EIO), "rank0-values.bin", "Input/output"),
        slow=True,
    ),
    Fault(
        "ENO1",
        "disk full at the last commit: export",
        _new_export(partial(_last_commit, "keys.txt", errno.ENOSPC), "No space left"),
    ),
    Fault(
        "store-h36",
        "EIO while writing records: export",
        _new_export(partial(fail_file, "values.bin", "write"), "Input/output"),
        slow=True,
    ),
    Fault(
        "store-h35",
        "... then again without the fault",
        _new_export(partial(fail_file, "values.bin", "write", errno.ENOSPC), "No space left"),
        slow=True,
    ),
    Fault("EIO4", "EIO while reading: verify", _VERIFY, _UNREADABLE, slow=True, options=_EIO),
    Fault("EIO4b", "EIO while reading: verify --repair", _REPAIR, _UNREADABLE, options=_EIO),
    Fault("F5", "a store in a folder a[/nope]b: info", _in_folder("a[/nope]b", "store", "info"), slow=True),
    Fault("store-h37", "... advise", _in_folder("a[/nope]b", "store", "advise", "--count", "4"), slow=True),
    Fault("F5b", "a store in a folder a[red]b: info shows its name", _in_folder("a[red]b", "store", "info"), slow=True),
    Fault(
        "J2",
        "a refused export: config.json stays",
        ["{export}", "DISTILL.CODEC", "int8"],
        refused("codec"),
        lambda place: place.store,
    ),
    Fault("store-h28", "advise --count 0", "store advise {store} --count 0", refused(), slow=True),
    Fault(
        "store-h29",
        "advise --count -5 --speed nan",
        "store advise {store} --count -5 --speed nan",
        refused(),
        slow=True,
    ),
    Fault("store-h31", "a store full of NaN: verify", _VERIFY, works("0 damaged"), _full_of_nan, slow=True),
    Fault("store-h32", "... convert", _CONVERT, refused("finite"), _full_of_nan, slow=True),
    Fault("store-h33", "... export --check-saved-embed", _export_line("--check-saved-embed"), slow=True),
    Fault(
        "store-h34",
        "an image deleted after the export: export again",
        _kept("{export}", works()),
        None,
        _deleted,
        slow=True,
    ),
    Fault("store-h38", "train while the export appends", _train_while_exporting, slow=True),
    Fault("store-h39", "two exports at once", _two_exports, slow=True),
    Fault("store-h40", "... the store afterwards", _once_each, slow=True),
    Fault("new-store-1", "empty keys: export leaves the records", partial(_values_stay, _keys_emptied)),
    Fault("new-store-2", "a flipped newline: verify --repair puts the ids back", partial(_put_back, _newline_flipped)),
    Fault(
        "new-store-3", "swapped lines: verify --repair puts the ids back", partial(_put_back, _lines_swapped), slow=True
    ),
    Fault("new-store-4", "an unbound store is told so, and bound by one command", _unbound, slow=True),
    Fault(
        "new-store-5",
        "garbage for what binds: verify --repair",
        _kept(_REPAIR, works("0 damaged")),
        None,
        _bound_garbage,
    ),
    Fault(
        "new-store-6", "garbage for checksums: verify --repair", _kept(_REPAIR, works("0 damaged")), None, _crc_garbage
    ),
    Fault(
        "new-store-7",
        "a manifest with half the channels, unbound: verify --repair",
        _REPAIR,
        refused("manifest.json"),
        _halved_unbound,
        slow=True,
    ),
    Fault(
        "new-store-8",
        "a manifest with another seed: train",
        "{train}",
        refused("manifest.json"),
        lambda place: edit_manifest(place.store, seed=5),
        slow=True,
    ),
    Fault(
        "new-store-9",
        "a record file is missing: verify --repair",
        _REPAIR,
        refused("rank0-values.bin"),
        _values_missing,
    ),
    Fault("new-store-10", "disk full at the last step of a repair", _repair_without_new_keys, slow=True),
    Fault(
        "new-store-11",
        "an image of the same size replaced: train names it and leaves it out",
        _named_and_left_out,
        slow=True,
    ),
    Fault("new-store-12", "two images swapped: verify --data-path --repair drops those two", _stale_dropped, slow=True),
    Fault(
        "new-store-13",
        "what binds is a FIFO: info",
        _INFO,
        refused("rank0-bound.bin", "FIFO"),
        lambda place: _fifo(file(place.store, 0, "bound.bin")),
        slow=True,
    ),
    Fault(
        "new-store-14",
        "a shard's records are a FIFO: train",
        "{train}",
        refused("rank0-values.bin", "FIFO"),
        lambda place: _fifo(file(place.store, 0, "values.bin")),
        slow=True,
    ),
]
