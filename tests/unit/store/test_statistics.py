"""The teacher's statistics: exact in any order and any shards, and never ahead of the committed records."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from efficientsam3.cli import main
from efficientsam3.data.layouts import list_images
from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.runtime.errors import UserError
from efficientsam3.store.convert import convert_store
from efficientsam3.store.gather import compute_statistics, measure_batch
from efficientsam3.store.maintenance import merge_shards
from efficientsam3.store.manifest import StoreManifest, write_store_manifest
from efficientsam3.store.records import pack_records
from efficientsam3.store.repair import verify_store
from efficientsam3.store.shards import Shard
from efficientsam3.store.statistics import (
    ChannelStatistics,
    ShardStatistics,
    gathered_statistics,
    store_statistics,
)
from efficientsam3.store.writer import ShardWriter

DIM, GRID = 3, 4
MANIFEST = StoreManifest(embed_dim=DIM, embed_size=GRID, preprocessing=Preprocessing(image_size=56))
EVERYWHERE = torch.ones(GRID, GRID, dtype=torch.bool)


def embedding(number: int) -> torch.Tensor:
    return torch.randn(1, DIM, GRID, GRID, generator=torch.Generator().manual_seed(number)).half().float()


def fill(directory: Path, rank: int, numbers: range, gather: bool = True) -> None:
    write_store_manifest(directory, MANIFEST)
    shard, codec = Shard(directory, rank), MANIFEST.build_codec(directory)
    writer = ShardWriter(shard, MANIFEST.record_size, ShardStatistics(shard, DIM) if gather else None)
    for number in numbers:
        record = pack_records(np.array([number], np.int32), codec.encode(embedding(number)).numpy())[0]
        writer.append(f"sa_{number}", record, ChannelStatistics.measure(embedding(number)[0]))
        writer.commit()
    writer.close()


def same(found: ChannelStatistics, numbers: range, valid: torch.Tensor = EVERYWHERE) -> bool:
    cells = torch.cat([embedding(number)[0][:, valid] for number in numbers], dim=1).double()
    return (
        found.cells == cells.shape[1]
        and torch.allclose(found.mean, cells.mean(dim=1), rtol=1e-12)
        and torch.allclose(found.variance, cells.var(dim=1, unbiased=False), rtol=1e-12)
    )


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Six images in two shards, with their statistics."""
    fill(tmp_path / "store", 0, range(4))
    fill(tmp_path / "store", 3, range(4, 6))
    return tmp_path / "store"


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=12),
    offset=st.sampled_from([0.0, 1e4, -3e6]),
    split=st.integers(0, 12),
)
def test_merging_in_any_way_gives_the_statistics_of_all(sizes: list[int], offset: float, split: int) -> None:
    generator = np.random.default_rng(len(sizes))
    parts = [torch.from_numpy(offset + 0.01 * generator.standard_normal((DIM, size, 1))) for size in sizes]
    measured = [ChannelStatistics.measure(part) for part in parts]
    left, right = ChannelStatistics.nothing(DIM), ChannelStatistics.nothing(DIM)
    for part in measured[:split]:
        left = left.merge(part)
    for part in measured[split:]:
        right = right.merge(part)
    found, cells = left.merge(right), torch.cat(parts, dim=1).flatten(1)
    assert found.cells == cells.shape[1]
    assert torch.allclose(found.mean, cells.mean(dim=1), rtol=1e-14)
    # The textbook's E[x^2] - E[x]^2 has no correct digit left at these offsets.
    assert torch.allclose(found.variance, cells.var(dim=1, unbiased=False), rtol=1e-5, atol=1e-12)


def test_padding_does_not_count() -> None:
    padding = MANIFEST.model_copy(update={"preprocessing": Preprocessing(image_size=56, resize="pad")})
    valid = torch.zeros_like(EVERYWHERE)
    valid[:2, :3] = True
    [found] = measure_batch(embedding(0), torch.tensor([[28, 40]]), padding)
    assert same(found, range(1), valid)


def test_a_store_has_the_statistics_of_all_its_shards(store: Path) -> None:
    assert same(store_statistics(store), range(6))


def test_gathered_while_writing_or_computed_afterwards_they_are_the_same(store: Path, tmp_path: Path) -> None:
    fill(tmp_path / "older", 0, range(6), gather=False)
    assert gathered_statistics(tmp_path / "older") is None
    with pytest.raises(UserError, match=r"lacks the teacher's statistics.*store statistics .*older --data-path DIR"):
        store_statistics(tmp_path / "older")
    seen: list[int] = []
    assert same(compute_statistics(tmp_path / "older", [], seen.append), range(6))
    assert sum(seen) == 6
    assert torch.allclose(store_statistics(tmp_path / "older").m2, store_statistics(store).m2, rtol=1e-13)


def test_after_a_kill_only_the_records_since_are_read(store: Path) -> None:
    shard = Shard(store, 0)
    before = shard.statistics_path.read_bytes()
    # The keys of two more records were committed, and then the process was killed.
    writer = ShardWriter(shard, MANIFEST.record_size)
    codec = MANIFEST.build_codec(store)
    for number in (6, 7):
        writer.append(f"sa_{number}", pack_records(np.array([0], np.int32), codec.encode(embedding(number)).numpy())[0])
    writer.commit()
    writer.close()
    assert shard.statistics_path.read_bytes() == before
    assert gathered_statistics(store) is None
    seen: list[int] = []
    assert same(compute_statistics(store, [], seen.append), range(8))
    assert sum(seen) == 2
    seen.clear()
    compute_statistics(store, [], seen.append)
    assert seen == []


def test_a_new_shard_has_statistics_before_its_first_record(tmp_path: Path) -> None:
    """Otherwise a kill between the first commit and its statistics would leave what looks like an older store."""
    fill(tmp_path, 0, range(0))
    assert ShardStatistics.read(Shard(tmp_path, 0), []) is not None


def test_statistics_of_other_records_are_not_used(store: Path) -> None:
    values = Shard(store, 0).values_path
    content = bytearray(values.read_bytes())
    content[MANIFEST.record_size + 9] ^= 1  # record 1
    values.write_bytes(content)
    verify_store(store, repair=True)
    assert gathered_statistics(store) is None
    assert compute_statistics(store, []).cells == 5 * GRID * GRID


def test_the_same_number_of_other_records_is_noticed(store: Path) -> None:
    path = Shard(store, 0).keys_path
    path.write_bytes(path.read_bytes().replace(b"sa_2\n", b"sa_9\n"))
    assert gathered_statistics(store) is None


def test_merged_shards_keep_them(store: Path) -> None:
    before = store_statistics(store)
    merge_shards(store)
    assert torch.equal(store_statistics(store).m2, before.m2)
    assert not Shard(store, 3).statistics_path.exists()


def test_shards_with_images_in_common_are_not_counted_twice_when_merged(store: Path) -> None:
    fill(store, 5, range(5, 8))
    merge_shards(store)
    assert gathered_statistics(store) is None
    seen: list[int] = []
    assert same(compute_statistics(store, [], seen.append), range(8))
    assert sum(seen) == 2  # what was gathered before is still good


def test_a_converted_store_has_its_source_s_statistics(store: Path, tmp_path: Path) -> None:
    convert_store(store, tmp_path / "new", "int8", torch.device("cpu"))
    assert torch.equal(store_statistics(tmp_path / "new").m2, store_statistics(store).m2)


def test_a_store_converted_from_one_without_has_none(tmp_path: Path) -> None:
    fill(tmp_path / "older", 0, range(3), gather=False)
    convert_store(tmp_path / "older", tmp_path / "new", "int8", torch.device("cpu"))
    assert gathered_statistics(tmp_path / "new") is None


def test_a_damaged_file_is_named(store: Path) -> None:
    path = Shard(store, 3).statistics_path
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=r"rank3-statistics\.safetensors is damaged.*delete it"):
        store_statistics(store)


def test_the_published_format_is_described_to_the_command(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (store / "manifest.json").unlink()
    for path in store.glob("rank*-*.safetensors"):
        path.unlink()
    assert main(["store", "statistics", str(store)]) == 2
    assert "--published 1024 72 1008 pad" in capsys.readouterr().err
    for wrong in (["3", "4", "56", "crop"], ["three", "4", "56", "pad"]):
        assert main(["store", "statistics", str(store), "--published", *wrong]) == 2
        assert "is not understood" in capsys.readouterr().err
    main(["store", "statistics", str(store), "--published", str(DIM), str(GRID), "56", "square"])
    assert same(store_statistics(store), range(6))


def test_the_command_needs_the_images_where_they_are_padded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    padded = StoreManifest(embed_dim=DIM, embed_size=GRID, preprocessing=Preprocessing(image_size=56, resize="pad"))
    write_store_manifest(tmp_path / "store", padded)
    writer = ShardWriter(Shard(tmp_path / "store", 0), padded.record_size)
    codec = padded.build_codec(tmp_path / "store")
    writer.append("sa_1", pack_records(np.array([0], np.int32), codec.encode(embedding(1)).numpy())[0])
    writer.commit()
    writer.close()
    assert main(["store", "statistics", str(tmp_path / "store")]) == 2
    assert "'sa_1'" in capsys.readouterr().err
    (tmp_path / "data" / "images" / "train").mkdir(parents=True)
    (tmp_path / "data" / "images" / "val").mkdir()
    # Turned by EXIF: 40 pixels wide and 20 high for every reader, half of the input.
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 40)).save(tmp_path / "data" / "images" / "train" / "sa_1.jpg", exif=exif)
    main(["store", "statistics", str(tmp_path / "store"), "--data-path", str(tmp_path / "data")])
    assert f"1 records, {GRID * GRID // 2} cells" in capsys.readouterr().out
    valid = EVERYWHERE.clone()
    valid[GRID // 2 :] = False
    assert same(store_statistics(tmp_path / "store"), range(1, 2), valid)
    assert len(list_images(tmp_path / "data", "train", "sa1b")) == 1
