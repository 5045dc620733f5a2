"""What binds records to ids: a change of the keys is noticed and undone, and what is not known harms nothing."""

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientsam3.cli import main
from efficientsam3.data.images import ImageStamp
from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.runtime.errors import UserError
from efficientsam3.store.binding import (
    ENTRY_BYTES,
    HEADER_BYTES,
    Binding,
    Entry,
    Header,
    read_bound_lines,
    recover_keys,
)
from efficientsam3.store.maintenance import bind_store, describe_store, merge_shards, missing_ids
from efficientsam3.store.manifest import StoreManifest, write_store_manifest
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.store.repair import verify_store
from efficientsam3.store.shards import Shard
from efficientsam3.store.statistics import ChannelStatistics, ShardStatistics
from efficientsam3.store.writer import ShardWriter

MANIFEST = StoreManifest(embed_dim=3, embed_size=2, preprocessing=Preprocessing(image_size=28))
SIZE = MANIFEST.record_size
IDS = [b"sa_1", b"sa_22", b"x", b"sa_3", "pläne/sa 4".encode(), b"sa_5"]


def record(key: bytes) -> np.ndarray:
    return np.random.default_rng(len(key) * 1000 + sum(key)).integers(0, 60, SIZE, dtype=np.uint8)


def fill(directory: Path, ids: list[bytes], rank: int = 0) -> Shard:
    write_store_manifest(directory, MANIFEST)
    shard = Shard(directory, rank)
    writer = ShardWriter(shard, SIZE)
    for key in ids:
        writer.append(os.fsdecode(key), record(key), image=ImageStamp(len(key), sum(key)))
    writer.commit()
    writer.close()
    return shard


def content(directory: Path) -> dict[bytes, bytes]:
    store = EmbeddingStore(directory)
    return {store.ids[row]: store.read(row).numpy().tobytes() for row in range(len(store))}


def expected(ids: list[bytes]) -> dict[bytes, bytes]:
    return {key: record(key).tobytes() for key in ids}


def changed(path: Path, position: int, value: int = 0x58) -> None:
    data = bytearray(path.read_bytes())
    data[position] = value if data[position] != value else value ^ 1
    path.write_bytes(data)


@given(st.integers(0, 2**40), st.integers(1, 2**64 - 1), *[st.integers(0, 2**32 - 1)] * 4)
def test_entries_survive_a_round_trip_and_hold_in_their_place_alone(
    position: int, end: int, keys_crc: int, crc: int, size: int, image: int
) -> None:
    entry = Entry(end, keys_crc, crc, ImageStamp(size, image))
    packed = entry.pack(position)
    assert len(packed) == ENTRY_BYTES
    assert Entry.unpack(position, packed) == entry
    assert Entry.unpack(position + 1, packed) is None
    for damaged in (packed[:-1], bytes(ENTRY_BYTES), bytes([packed[0] ^ 4]) + packed[1:]):
        assert Entry.unpack(position, damaged) is None


def test_a_damaged_header_says_nothing() -> None:
    packed = Header(7, bytes(range(16)), 3).pack()
    assert Header.unpack(packed) == Header(7, bytes(range(16)), 3)
    assert len(packed) == HEADER_BYTES
    for damaged in (b"", packed[:-1], bytes(HEADER_BYTES), packed[:9] + b"!" + packed[10:]):
        assert Header.unpack(damaged) is None


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_ids_are_put_back_wherever_their_lines_are(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Lines in another order, with other ends, with lines between them: all that is still there is found."""
    directory = tmp_path_factory.mktemp("store")
    shard = fill(directory, IDS)
    lines = data.draw(st.permutations(IDS))
    for _ in range(data.draw(st.integers(0, 2))):
        lines.insert(data.draw(st.integers(0, len(lines))), data.draw(st.sampled_from([b"", b"foreign", b"sa_1"])))
    ends = [data.draw(st.sampled_from([b"\n", b"\r\n"])) for _ in lines]
    keys = b"".join(line + end for line, end in zip(lines, ends, strict=True))
    shard.keys_path.write_bytes(keys)
    assert recover_keys(Binding(shard), keys)[: len(IDS)] == IDS
    if keys != b"".join(key + b"\n" for key in IDS):
        with pytest.raises(UserError, match=r"rank0-keys\.txt was changed"):
            EmbeddingStore(directory)
        result = verify_store(directory)
        assert (result.renamed, result.damaged, result.repaired) == (("rank0-keys.txt",), (), False)
        assert verify_store(directory, repair=True).repaired
    assert content(directory) == expected(IDS)
    assert verify_store(directory).renamed == ()


@pytest.mark.parametrize("position", range(len(b"\n".join(IDS)) + 1))
def test_any_byte_of_the_keys_may_change(tmp_path: Path, position: int) -> None:
    shard = fill(tmp_path, IDS)
    whole = shard.keys_path.read_bytes()
    ends = [number for number, byte in enumerate(whole) if byte == 10]
    changed(shard.keys_path, position)
    for refuse in (
        lambda: EmbeddingStore(tmp_path),
        lambda: ShardWriter(shard, SIZE),
        lambda: missing_ids(tmp_path, []),
        lambda: bind_store(tmp_path),
    ):
        with pytest.raises(UserError, match="store verify --repair"):
            refuse()
    assert describe_store(tmp_path).shards[0].bound is None
    result = verify_store(tmp_path, repair=True)
    lost = [] if position in ends else [sum(end < position for end in ends)]
    assert [name for _, name in result.damaged] == [f"record {number}, whose id is lost" for number in lost]
    assert content(tmp_path) == expected([key for number, key in enumerate(IDS) if number not in lost])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_fault_of_one_file_costs_a_good_record_or_shifts_an_id(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever happens to a file: no id ever gets another's record, and only what was hit is lost."""
    directory = tmp_path_factory.mktemp("store")
    shard = fill(directory, IDS)
    path = data.draw(st.sampled_from([shard.keys_path, shard.crc_path, shard.bound_path, shard.values_path]))
    whole = path.read_bytes()
    start = data.draw(st.integers(0, len(whole) - 1))
    end = data.draw(st.integers(start, min(start + 40, len(whole))))
    new = data.draw(st.binary(max_size=12) | st.just(bytes(end - start)) | st.just(b""))
    kind = data.draw(st.sampled_from(["replace", "truncate", "append", "reverse"]))
    spoilt = {
        "replace": whole[:start] + new + whole[end:],
        "truncate": whole[:start],
        "append": whole + new,
        "reverse": whole[:start] + whole[start:end][::-1] + whole[end:],
    }[kind]
    path.write_bytes(spoilt)
    if path != shard.values_path:
        with contextlib.suppress(UserError):
            assert content(directory).items() <= expected(IDS).items()
    try:
        verify_store(directory, repair=True)
    except UserError as error:
        if path == shard.values_path and "None of the" in str(error):
            return
        raise
    found = content(directory)
    assert found.items() <= expected(IDS).items()
    if path in (shard.crc_path, shard.bound_path) or kind == "append":
        assert found == expected(IDS)
    elif path == shard.keys_path and kind != "truncate":
        before, after = whole[:start].count(b"\n"), whole[end:].count(b"\n")
        assert found.keys() >= {*IDS[:before], *IDS[len(IDS) - max(0, after - 1) :]} - {b""}
    elif path == shard.keys_path:
        assert found.keys() >= {*IDS[: whole[:start].count(b"\n")]}
    elif len(spoilt) == len(whole):
        assert found.keys() >= {*IDS[: start // SIZE], *IDS[-(-end // SIZE) :]}
    fill(directory, [key for key in IDS if key not in found])
    assert content(directory) == expected(IDS)


def test_keys_that_were_cut_are_not_taken_for_a_kill(tmp_path: Path) -> None:
    shard = fill(tmp_path, IDS)
    before = shard.values_path.read_bytes()
    shard.keys_path.write_bytes(b"")
    for refuse in (lambda: EmbeddingStore(tmp_path), lambda: ShardWriter(shard, SIZE)):
        with pytest.raises(UserError, match="has 0 ids where it had 6"):
            refuse()
    assert shard.values_path.read_bytes() == before
    shard.keys_path.write_bytes(b"".join(key + b"\n" for key in IDS[:4]))
    assert len(verify_store(tmp_path, repair=True).damaged) == 2
    assert content(tmp_path) == expected(IDS[:4])


def test_another_manifest_is_refused(tmp_path: Path) -> None:
    shard = fill(tmp_path, IDS)
    path = tmp_path / "manifest.json"
    whole = path.read_text()
    for old, new in (('"embed_dim": 3', '"embed_dim": 6'), ('"seed": 0', '"seed": 1')):
        path.write_text(whole.replace(old, new))
        for refuse in (
            lambda: EmbeddingStore(tmp_path),
            lambda: ShardWriter(shard, SIZE),
            lambda: verify_store(tmp_path, repair=True),
        ):
            with pytest.raises(UserError, match=r"another manifest\.json"):
                refuse()
    path.write_text(whole)
    assert content(tmp_path) == expected(IDS)


@pytest.mark.parametrize("spoil", ["lost", "empty", "short", "zeros", "header"])
def test_what_is_not_bound_is_kept_and_bound_by_one_call(tmp_path: Path, spoil: str) -> None:
    shard = fill(tmp_path, IDS)
    whole = shard.bound_path.read_bytes()
    there = HEADER_BYTES + 2 * ENTRY_BYTES
    kept = {"short": whole[:there], "zeros": whole[:there] + bytes(4 * ENTRY_BYTES), "header": b"?" + whole[1:]}
    shard.bound_path.unlink()
    if spoil != "lost":
        shard.bound_path.write_bytes(kept.get(spoil, b""))
    known = {"short": 2, "zeros": 2, "header": 6}.get(spoil, 0)
    assert content(tmp_path) == expected(IDS)
    assert describe_store(tmp_path).shards[0].bound == known
    result = verify_store(tmp_path, repair=True)
    assert (result.damaged, result.unbound, result.repaired) == ((), 6 - known, False)
    fill(tmp_path, [b"sa_9"])
    assert content(tmp_path) == expected([*IDS, b"sa_9"])
    assert bind_store(tmp_path) == (6 - known, known + 1)
    assert verify_store(tmp_path).unbound == 0
    changed(shard.keys_path, len(IDS[0]))
    assert verify_store(tmp_path, repair=True).renamed
    assert content(tmp_path) == expected([*IDS, b"sa_9"])
    if known == 6:
        assert EmbeddingStore(tmp_path).read_image_stamp(1) == ImageStamp(len(b"sa_1"), sum(b"sa_1"))


def test_the_published_format_is_bound_given_its_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = fill(tmp_path, IDS)
    published = shard.keys_path.read_bytes(), shard.values_path.read_bytes()
    for path in (shard.bound_path, shard.crc_path, tmp_path / "manifest.json"):
        path.unlink()
    assert main(["store", "bind", str(tmp_path)]) == 2
    assert main(["store", "bind", str(tmp_path), "--published", "3", "2", "28", "pad"]) == 0
    assert "6 records bound to their ids, 0 were before" in capsys.readouterr().out
    assert published == (shard.keys_path.read_bytes(), shard.values_path.read_bytes())
    store = EmbeddingStore(tmp_path, MANIFEST)
    assert {store.ids[row]: store.read(row).numpy().tobytes() for row in range(6)} == expected(IDS)
    changed(shard.keys_path, 0)
    with pytest.raises(UserError, match="was changed"):
        EmbeddingStore(tmp_path, MANIFEST)


def test_keys_that_the_statistics_contradict_are_not_bound(tmp_path: Path) -> None:
    shard = fill(tmp_path, IDS)
    statistics = ShardStatistics(shard, MANIFEST.embed_dim)
    statistics.add(IDS, ChannelStatistics.nothing(MANIFEST.embed_dim))
    statistics.write()
    shard.bound_path.unlink()
    changed(shard.keys_path, 1)
    with pytest.raises(UserError, match=r"rank0-keys\.txt was changed since rank0-statistics"):
        bind_store(tmp_path)


def test_damaged_records_are_not_bound(tmp_path: Path) -> None:
    shard = fill(tmp_path, IDS)
    shard.bound_path.unlink()
    changed(shard.values_path, SIZE + 3)
    with pytest.raises(UserError, match=r"'sa_22' .* is damaged"):
        bind_store(tmp_path)
    assert not shard.bound_path.exists()


def test_a_damaged_entry_or_checksum_drops_no_record(tmp_path: Path) -> None:
    shard = fill(tmp_path, IDS)
    changed(shard.bound_path, HEADER_BYTES + 3 * ENTRY_BYTES + 13)
    changed(shard.crc_path, 4 * 1)
    result = verify_store(tmp_path, repair=True)
    assert (result.damaged, result.unbound) == ((), 1)
    assert content(tmp_path) == expected(IDS)


def test_nothing_is_dropped_where_no_record_is_intact(tmp_path: Path) -> None:
    shard = fill(tmp_path, IDS)
    shard.bound_path.unlink()
    path = tmp_path / "manifest.json"
    whole = path.read_text()
    path.write_text(whole.replace('"embed_dim": 3', '"embed_dim": 1'))
    with pytest.raises(UserError, match="None of the 6 records"):
        verify_store(tmp_path, repair=True)
    path.write_text(whole)
    shard.values_path.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"rank0-values\.bin is missing"):
        verify_store(tmp_path, repair=True)
    (tmp_path / "elsewhere").rename(shard.values_path)
    assert content(tmp_path) == expected(IDS)


def test_merged_and_moved_records_keep_the_stamps_of_their_images(tmp_path: Path) -> None:
    fill(tmp_path, IDS[:3])
    moved = fill(tmp_path, IDS[3:], rank=1)
    changed(moved.values_path, 5)
    verify_store(tmp_path, repair=True)
    merge_shards(tmp_path)
    store = EmbeddingStore(tmp_path)
    assert [store.read_image_stamp(row) for row in range(len(store))] == [
        ImageStamp(len(key), sum(key)) for key in store.ids
    ]
    assert store.image_sizes(np.arange(len(store))).tolist() == [len(key) for key in store.ids]
    assert read_bound_lines(Shard(tmp_path, 0), SIZE)[1].count == 5
