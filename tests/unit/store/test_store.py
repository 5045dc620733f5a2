"""Writer and reader together: exactly the committed records are there, and damage is named."""

import errno
import itertools
import multiprocessing
import os
import resource
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.runtime.errors import UserError
from efficientsam3.store.manifest import StoreManifest, write_store_manifest
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.store.repair import verify_store
from efficientsam3.store.shards import Shard
from efficientsam3.store.writer import BackgroundWriter, ShardWriter
from killed import cut_keys

MANIFEST = StoreManifest(embed_dim=3, embed_size=2, preprocessing=Preprocessing(image_size=28))
SIZE = MANIFEST.record_size


def record(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 60, SIZE, dtype=np.uint8)


def fill(directory: Path, rank: int, numbers: range) -> None:
    write_store_manifest(directory, MANIFEST)
    with BackgroundWriter(Shard(directory, rank), SIZE) as writer:
        for number in numbers:
            writer.append(f"sa_{number}", record(number))


def content(directory: Path) -> dict[str, bytes]:
    store = EmbeddingStore(directory)
    return {store.ids[row].decode(): store.read(row).numpy().tobytes() for row in range(len(store))}


def expected(numbers: range) -> dict[str, bytes]:
    return {f"sa_{number}": record(number).tobytes() for number in numbers}


def test_round_trip_over_shards_and_runs(tmp_path: Path) -> None:
    fill(tmp_path, 0, range(5))
    fill(tmp_path, 3, range(5, 7))
    fill(tmp_path, 0, range(7, 9))
    assert content(tmp_path) == expected(range(9))


def test_rows_say_what_is_missing(tmp_path: Path) -> None:
    fill(tmp_path, 0, range(3))
    store = EmbeddingStore(tmp_path)
    rows = store.rows(np.array([b"sa_2", b"sa_9", b"sa_", b"sa_0", b"a_longer_id_than_any"]))
    assert (rows >= 0).tolist() == [True, False, False, True, False]
    assert store.ids[rows[0]] == b"sa_2"


def test_an_empty_store_has_nothing(tmp_path: Path) -> None:
    write_store_manifest(tmp_path, MANIFEST)
    store = EmbeddingStore(tmp_path)
    assert len(store) == 0
    assert store.rows(np.array([b"sa_1"])).tolist() == [-1]


def test_decoding(tmp_path: Path) -> None:
    write_store_manifest(tmp_path, MANIFEST)
    grid = torch.randn(1, 3, 2, 2)
    payload = MANIFEST.build_codec(tmp_path).encode(grid).numpy()
    with BackgroundWriter(Shard(tmp_path, 0), SIZE) as writer:
        writer.append("sa_1", np.concatenate([np.array([42], "<i4").view(np.uint8), payload[0]]))
    store = EmbeddingStore(tmp_path)
    seeds, embeddings = store.decode(store.read(0)[None])
    assert seeds.tolist() == [42]
    assert torch.equal(embeddings, grid.half().float())


def test_a_seed_is_read_without_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store_manifest(tmp_path, MANIFEST)
    seeds = [7, -1, 2**31 - 1]
    with BackgroundWriter(Shard(tmp_path, 0), SIZE) as writer:
        for number, seed in enumerate(seeds):
            writer.append(f"sa_{number}", np.concatenate([np.array([seed], "<i4").view(np.uint8), record(number)[4:]]))
    read, counts = os.preadv, list[int]()
    monkeypatch.setattr(os, "preadv", lambda *arguments: counts.append(read(*arguments)) or counts[-1])
    store = EmbeddingStore(tmp_path)
    assert [store.read_seed(row) for row in range(3)] == seeds
    assert counts == [4, 4, 4]


def test_threads_may_read_at_once(tmp_path: Path) -> None:
    fill(tmp_path, 0, range(40))
    store, rows = EmbeddingStore(tmp_path), [*range(40)] * 5
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda row: store.read(row).numpy().tobytes(), rows))
    assert found == [expected(range(40))[store.ids[row].decode()] for row in rows]
    assert len(store._files) == 2  # values, and what binds them


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_torn_tail_is_cut_off_and_the_next_run_continues(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever a power cut leaves after the last whole key line, earlier records stay and the rest is written again."""
    directory = tmp_path_factory.mktemp("store")
    fill(directory, 0, range(4))
    shard = Shard(directory, 0)
    for path in (shard.values_path, shard.crc_path, shard.bound_path):
        with path.open("ab") as file:
            file.write(data.draw(st.binary(max_size=2 * SIZE)))
    keep = data.draw(st.integers(0, 4))
    lines = shard.keys_path.read_bytes().splitlines(keepends=True)
    torn = lines[keep][: data.draw(st.integers(0, 4))] if keep < 4 else b"sa_"
    cut_keys(shard, keep, torn)
    assert content(directory) == expected(range(keep))
    fill(directory, 0, range(keep, 6))
    assert content(directory) == expected(range(6))
    assert shard.values_path.stat().st_size == 6 * SIZE


def append_for_ever(directory: Path, done: int, ready: threading.Event) -> None:
    shard = Shard(directory, 0)
    with BackgroundWriter(shard, SIZE, commit_seconds=0.01) as writer:
        for number in itertools.count(done):
            writer.append(f"sa_{number}", record(number))
            if len(shard.read_keys()) > done + 50:
                ready.set()


def test_a_kill_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    write_store_manifest(tmp_path, MANIFEST)
    forks, done = multiprocessing.get_context("fork"), 0
    for _ in range(3):
        ready = forks.Event()
        process = forks.Process(target=append_for_ever, args=(tmp_path, done, ready))
        process.start()
        assert ready.wait(200)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        found = content(tmp_path)
        assert len(found) > done + 50
        assert found == expected(range(len(found)))
        done = len(found)


def test_a_full_disk_stops_the_producer_with_its_reason_and_keeps_what_was_committed(tmp_path: Path) -> None:
    fill(tmp_path, 0, range(3))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE * 5 + 1, before[1]))
    try:
        with pytest.raises(UserError, match=r"Cannot write to .*rank0-values\.bin: File too large"):
            fill(tmp_path, 0, range(3, 100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    found = content(tmp_path)
    assert found == expected(range(len(found)))
    assert len(found) >= 3
    fill(tmp_path, 0, range(len(found), 10))
    assert content(tmp_path) == expected(range(10))


@pytest.mark.parametrize("name", ["rank0-values.bin", "rank0-bound.bin", "rank0-keys.txt"])
def test_a_disk_that_fails_at_the_last_commit_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fill(tmp_path, 0, range(3))
    fsync, before = os.fsync, (tmp_path / name).stat().st_size

    def fail(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(name) and os.fstat(descriptor).st_size > before:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=r"Cannot write to .*: Input/output error; everything committed before is safe"):
        fill(tmp_path, 0, range(3, 40))  # more than the queue holds
    monkeypatch.undo()
    found = content(tmp_path)
    assert found.items() >= expected(range(3)).items()
    fill(tmp_path, 0, range(len(found), 50))
    assert content(tmp_path) == expected(range(50))


def test_two_writers_on_one_shard_are_refused(tmp_path: Path) -> None:
    writer = ShardWriter(Shard(tmp_path, 0), SIZE)
    with pytest.raises(UserError, match="Another process writes"):
        ShardWriter(Shard(tmp_path, 0), SIZE)
    writer.close()
    ShardWriter(Shard(tmp_path, 0), SIZE).close()


def test_records_are_not_there_before_they_are_committed(tmp_path: Path) -> None:
    write_store_manifest(tmp_path, MANIFEST)
    writer = ShardWriter(Shard(tmp_path, 0), SIZE)
    writer.append("sa_1", record(1))
    assert content(tmp_path) == {}
    writer.commit()
    assert content(tmp_path) == expected(range(1, 2))
    writer.close()


def test_values_reach_the_disk_before_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    writer = ShardWriter(Shard(tmp_path, 0), SIZE)
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        if order[-1] != "rank0-keys.txt":
            assert (tmp_path / "rank0-keys.txt").stat().st_size == 0
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    writer.append("sa_1", record(1))
    writer.commit()
    writer.close()
    assert order == ["rank0-values.bin", "rank0-crc32.bin", "rank0-bound.bin", "rank0-keys.txt"]


def test_a_flipped_bit_is_named_by_key(tmp_path: Path) -> None:
    fill(tmp_path, 0, range(3))
    path = Shard(tmp_path, 0).values_path
    damaged = bytearray(path.read_bytes())
    damaged[SIZE + 5] ^= 1
    path.write_bytes(damaged)
    store = EmbeddingStore(tmp_path)
    for row in (0, 2):
        store.read(row)
    with pytest.raises(UserError, match=r"image 'sa_1' .* is damaged"):
        store.read(1)


def test_a_shortened_record_file_is_refused_by_reader_and_writer(tmp_path: Path) -> None:
    fill(tmp_path, 0, range(3))
    path = tmp_path / "rank0-values.bin"
    path.write_bytes(path.read_bytes()[:-1])
    for open_it in (lambda: EmbeddingStore(tmp_path), lambda: ShardWriter(Shard(tmp_path, 0), SIZE)):
        with pytest.raises(UserError, match=path.name):
            open_it()


@pytest.mark.parametrize("size", [None, 0, 7])
@pytest.mark.parametrize("bound", [False, True])
def test_a_short_or_lost_checksum_file_says_nothing_against_a_record(
    tmp_path: Path, size: int | None, bound: bool
) -> None:
    fill(tmp_path, 0, range(3))
    shard = Shard(tmp_path, 0)
    checksums = shard.crc_path.read_bytes()
    shard.crc_path.unlink() if size is None else os.truncate(shard.crc_path, size)
    if not bound:
        shard.bound_path.unlink()
    assert content(tmp_path) == expected(range(3))
    fill(tmp_path, 0, range(3, 5))
    assert content(tmp_path) == expected(range(5))
    result = verify_store(tmp_path, repair=True)
    assert (result.damaged, result.unchecked, result.unbound) == ((), *((0, 0) if bound else (3 - (size or 0) // 4, 3)))
    if bound:  # it is completed
        assert shard.crc_path.read_bytes()[: len(checksums)] == checksums
        assert len(shard.crc_path.read_bytes()) == 5 * 4
    else:  # nothing stands in for a lost one
        assert (shard.crc_path.stat().st_size if shard.crc_path.exists() else None) == size


def test_a_missing_key_file_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, 0, range(3))
    (tmp_path / "rank0-keys.txt").unlink()
    with pytest.raises(UserError, match=r"has no rank0-keys\.txt"):
        EmbeddingStore(tmp_path)


def test_the_published_format_opens_given_its_shape(tmp_path: Path) -> None:
    (tmp_path / "rank0-keys.txt").write_text("sa_5\nsa_4\n")
    (tmp_path / "rank0-values.bin").write_bytes(record(5).tobytes() + record(4).tobytes())
    with pytest.raises(UserError, match="has no manifest"):
        EmbeddingStore(tmp_path)
    store = EmbeddingStore(tmp_path, published=MANIFEST)
    assert store.ids.tolist() == [b"sa_4", b"sa_5"]
    assert store.read(0).numpy().tobytes() == record(4).tobytes()


def test_an_image_in_two_shards_counts_once(tmp_path: Path) -> None:
    fill(tmp_path, 0, range(3))
    fill(tmp_path, 1, range(2, 5))
    assert content(tmp_path) == expected(range(5))


def test_an_absent_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent does not exist"):
        EmbeddingStore(tmp_path / "absent")
