"""Verify, repair, merge and convert: every intact record stays, whatever is damaged or interrupted."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from efficientsam3.cli import main
from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.runtime.errors import UserError
from efficientsam3.store import convert
from efficientsam3.store.advise import CodecMeasure, measure_codecs, recommend
from efficientsam3.store.convert import convert_store
from efficientsam3.store.maintenance import describe_store, merge_shards, missing_ids
from efficientsam3.store.manifest import StoreManifest, write_store_manifest
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.store.records import pack_records
from efficientsam3.store.repair import verify_store
from efficientsam3.store.shards import Shard
from efficientsam3.store.writer import BackgroundWriter, ShardWriter
from killed import cut_keys

MANIFEST = StoreManifest(embed_dim=16, embed_size=2, preprocessing=Preprocessing(image_size=28), seed=3)
SIZE = MANIFEST.record_size
CPU = torch.device("cpu")


def embedding(number: int) -> torch.Tensor:
    return torch.randn(1, 16, 2, 2, generator=torch.Generator().manual_seed(number))


def record(number: int) -> np.ndarray:
    payload = MANIFEST.build_codec(Path()).encode(embedding(number))
    return pack_records(np.array([number], np.int32), payload)[0]


def fill(directory: Path, rank: int, numbers: range) -> None:
    write_store_manifest(directory, MANIFEST)
    with BackgroundWriter(Shard(directory, rank), SIZE) as writer:
        for number in numbers:
            writer.append(f"sa_{number}", record(number))


def content(directory: Path) -> dict[str, bytes]:
    store = EmbeddingStore(directory)
    return {store.ids[row].decode(): store.read(row).numpy().tobytes() for row in range(len(store))}


def expected(*numbers: int) -> dict[str, bytes]:
    return {f"sa_{number}": record(number).tobytes() for number in numbers}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Ten images in shards 0, 1 and 4."""
    directory = tmp_path / "store"
    fill(directory, 0, range(4))
    fill(directory, 1, range(4, 9))
    fill(directory, 4, range(9, 10))
    return directory


def flip(directory: Path, rank: int, position: int) -> None:
    path = Shard(directory, rank).values_path
    values = bytearray(path.read_bytes())
    values[position * SIZE + 7] ^= 4
    path.write_bytes(values)


def test_info_counts_records_and_what_is_uncommitted(store: Path) -> None:
    with Shard(store, 1).values_path.open("ab") as file:
        file.write(b"torn")
    info = describe_store(store)
    assert [(shard.rank, shard.records, shard.uncommitted) for shard in info.shards] == [
        (0, 4, 0),
        (1, 5, 4),
        (4, 1, 0),
    ]
    assert info.records == 10


def test_verify_names_each_bad_record_and_changes_nothing(store: Path) -> None:
    assert verify_store(store).damaged == ()
    flip(store, 0, 1)
    flip(store, 1, 4)
    before = {path.name: path.read_bytes() for path in store.iterdir()}
    result = verify_store(store)
    assert result.damaged == (("rank0-keys.txt", "sa_1"), ("rank1-keys.txt", "sa_8"))
    assert result.records == 10
    assert {path.name: path.read_bytes() for path in store.iterdir()} == before


def test_repair_drops_the_bad_records_only(store: Path) -> None:
    flip(store, 0, 1)
    flip(store, 1, 2)
    flip(store, 1, 3)
    assert verify_store(store, repair=True).repaired
    assert content(store) == expected(0, 2, 3, 4, 5, 8, 9)
    assert verify_store(store).damaged == ()
    fill(store, 0, range(1, 2))
    assert content(store) == expected(0, 1, 2, 3, 4, 5, 8, 9)


def test_repair_of_truncated_files_keeps_what_is_whole(store: Path) -> None:
    os.truncate(Shard(store, 1).values_path, 3 * SIZE - 1)
    os.truncate(Shard(store, 0).crc_path, 4 * 3)
    with pytest.raises(UserError, match="rank1-values"):
        EmbeddingStore(store)
    assert [key for _, key in verify_store(store, repair=True).damaged] == ["sa_6", "sa_7", "sa_8"]
    assert content(store) == expected(0, 1, 2, 3, 4, 5, 9)


def test_an_interrupted_repair_loses_no_intact_record(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(store, 1, 1)
    monkeypatch.setattr(ShardWriter, "commit", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        verify_store(store, repair=True)
    monkeypatch.undo()
    assert [key for _, key in verify_store(store).damaged] == ["sa_5"]
    verify_store(store, repair=True)
    assert content(store) == expected(0, 1, 2, 3, 4, 6, 7, 8, 9)


def test_merging_leaves_one_shard_with_everything(store: Path) -> None:
    fill(store, 4, range(2, 4))  # also in shard 0
    before = content(store)
    assert merge_shards(store) == 2
    assert content(store) == before
    assert sorted(path.name for path in store.iterdir()) == [
        "manifest.json", "rank0-bound.bin", "rank0-crc32.bin", "rank0-keys.txt", "rank0-values.bin",
    ]  # fmt: skip
    assert describe_store(store).records == 10
    assert merge_shards(store) == 0


@pytest.mark.parametrize("calls", range(5))
def test_merging_can_be_interrupted_anywhere(store: Path, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    before, unlink, count = content(store), Path.unlink, 0

    def interrupted(path: Path, missing_ok: bool = False) -> None:
        nonlocal count
        count += 1
        if count > calls:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", interrupted)
    with pytest.raises(KeyboardInterrupt):
        merge_shards(store)
    monkeypatch.undo()
    assert content(store) == before
    merge_shards(store)
    assert content(store) == before
    assert len(describe_store(store).shards) == 1


def test_merging_refuses_damaged_records_and_shards_in_use(store: Path) -> None:
    flip(store, 1, 0)
    with pytest.raises(UserError, match=r"'sa_4' .* verify --repair"):
        merge_shards(store)
    writer = ShardWriter(Shard(store, 4), SIZE)
    flip(store, 4, 0)
    for act in (lambda: fill(store, 4, range(1)), lambda: verify_store(store, repair=True)):
        with pytest.raises(UserError, match="Another process writes"):
            act()
    writer.close()


@pytest.mark.parametrize("codec", ["int8", "int4", "pca8-int8", "pca8-int4"])
def test_conversion_equals_encoding_at_once_and_resumes(store: Path, tmp_path: Path, codec: str) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert convert_store(store, whole, codec, CPU) == 10
    converted = EmbeddingStore(whole)
    for row in range(10):
        number = int(converted.ids[row].decode().removeprefix("sa_"))
        seeds, decoded = converted.decode(converted.read(row)[None])
        assert seeds.tolist() == [number]
        assert float(torch.nn.functional.cosine_similarity(decoded, embedding(number), dim=1).mean()) > 0.6
    convert_store(store, parts, codec, CPU)
    cut_keys(Shard(parts, 0), 8, b"sa_")
    assert convert_store(store, parts, codec, CPU) == 2
    assert content(parts).keys() == content(whole).keys()
    with pytest.raises(UserError, match="other settings .codec"):
        convert_store(store, parts, "float16", CPU)


def test_conversion_stops_at_a_damaged_record_and_refuses_its_own_folder(store: Path, tmp_path: Path) -> None:
    flip(store, 1, 1)
    with pytest.raises(UserError, match="'sa_5'.* is damaged"):
        convert_store(store, tmp_path / "out", "int8", CPU)
    with pytest.raises(UserError, match="give another folder"):
        convert_store(store, store, "int8", CPU)
    with pytest.raises(UserError, match="'zip' is not known"):
        convert_store(store, tmp_path / "zip", "zip", CPU)
    assert not (tmp_path / "zip").exists()


def test_conversion_refuses_what_is_not_finite(tmp_path: Path) -> None:
    write_store_manifest(tmp_path / "store", MANIFEST)
    bad = record(1)
    bad[4:6] = np.array([np.inf], "<f2").view(np.uint8)
    with BackgroundWriter(Shard(tmp_path / "store", 0), SIZE) as writer:
        writer.append("sa_1", bad)
    with pytest.raises(UserError, match="'sa_1' .* not finite"):
        convert_store(tmp_path / "store", tmp_path / "out", "int8", CPU)


def test_conversion_batches_follow_the_files(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "_BATCH", 3)
    convert_store(store, tmp_path / "out", "int8", CPU)
    assert Shard(tmp_path / "out", 0).read_keys() == [f"sa_{number}".encode() for number in range(10)]


def test_missing_ids(store: Path) -> None:
    assert missing_ids(store, ["sa_11", "sa_3", "sa_10"]) == ["sa_11", "sa_10"]


def test_the_smallest_good_codec_is_recommended(store: Path) -> None:
    measures = {item.codec: item for item in measure_codecs(store, 10)}
    assert measures["float16"].cosine > measures["int8"].cosine > measures["int4"].cosine
    assert measures["float16"].ratio == 1
    assert recommend(list(measures.values()), 0.999).codec in {"int8", "float16"}
    figures = CodecMeasure("a", 10, 1, 0, 0.99, 1, 1), CodecMeasure("b", 5, 2, 0, 0.98, 1, 1)
    assert recommend(list(figures), 0.98).codec == "b"
    assert recommend(list(figures), 0.985).codec == "a"
    with pytest.raises(UserError, match="No codec"):
        recommend(list(figures), 0.999)


def test_the_commands(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "info", str(store)]) == 0
    assert "rank4" in capsys.readouterr().out
    assert main(["store", "advise", str(store), "--count", "8", "--least-cosine", "0.9"]) == 0
    assert "Recommended: DISTILL.CODEC" in capsys.readouterr().out
    assert main(["store", "convert", str(store), "--codec", "int8", "--output", str(tmp_path / "new")]) == 0
    flip(store, 0, 0)
    with pytest.raises(SystemExit) as stop:
        main(["store", "verify", str(store)])
    assert stop.value.code == 1
    assert "damaged: sa_0 (rank0-keys.txt)" in capsys.readouterr().out
    assert main(["store", "verify", "--repair", str(store)]) == 0
    assert main(["store", "merge-shards", str(store)]) == 0
    images = tmp_path / "data" / "images"
    for split, name in (("train", "sa_0"), ("train", "sa_5"), ("val", "sa_77")):
        (images / split).mkdir(parents=True, exist_ok=True)
        (images / split / f"{name}.jpg").touch()
    capsys.readouterr()
    assert main(["store", "export-missing-list", str(store), "--data-path", str(tmp_path / "data")]) == 0
    assert capsys.readouterr().out.split() == ["sa_0", "sa_77"]
    assert main(["store", "info", str(tmp_path / "absent")]) == 2
