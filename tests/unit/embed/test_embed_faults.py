"""Damage between two runs: it is named, repaired, and what was lost is computed again, to the same bytes."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from efficientsam3.cli import main
from efficientsam3.config.schema import ExportConfig
from efficientsam3.embed.plan import plan_embedding
from efficientsam3.embed.run import embed_dataset
from efficientsam3.embed.verify import check_saved_embeddings
from efficientsam3.runtime.distributed import Process
from efficientsam3.runtime.errors import UserError
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.store.repair import verify_store
from efficientsam3.store.shards import Shard
from efficientsam3.store.writer import ShardWriter

MakeExport = Callable[..., ExportConfig]


def read_all(directory: Path) -> dict[str, bytes]:
    store = EmbeddingStore(directory)
    return {store.ids[row].decode(): store.read(row).numpy().tobytes() for row in range(len(store))}


@pytest.fixture
def shard(make_export: MakeExport, one_process: Process, tmp_path: Path) -> Shard:
    """The only shard of a whole run to tmp_path/teacher."""
    embed_dataset(plan_embedding(make_export("DATA.BATCH_SIZE", "1")), one_process)
    return Shard(tmp_path / "teacher" / "embeddings", 0)


def test_a_flipped_bit_and_a_truncated_file_are_repaired_to_the_same_bytes(
    make_export: MakeExport, one_process: Process, shard: Shard
) -> None:
    whole, config = read_all(shard.directory), make_export("DATA.BATCH_SIZE", "1")
    values = bytearray(shard.values_path.read_bytes())
    size = len(values) // 9
    values[2 * size + 99] ^= 16
    shard.values_path.write_bytes(values[: 7 * size - 1])
    with pytest.raises(UserError, match=r"rank0-values\.bin has 6 records .* promises 9"):
        embed_dataset(plan_embedding(config), one_process)
    keys = [key.decode() for key in shard.read_keys()]
    assert [key for _, key in verify_store(shard.directory, repair=True).damaged] == [keys[2], *keys[6:]]
    assert read_all(shard.directory).items() <= whole.items()
    assert embed_dataset(plan_embedding(config), one_process).embedded == 4
    assert read_all(shard.directory) == whole


def test_a_missing_key_file_stops_the_run(make_export: MakeExport, one_process: Process, shard: Shard) -> None:
    os.rename(shard.keys_path, shard.directory / "elsewhere.txt")
    with pytest.raises(UserError, match=r"has no rank0-keys\.txt .* embed again"):
        embed_dataset(plan_embedding(make_export()), one_process)


def test_a_second_run_into_the_same_shard_stops(make_export: MakeExport, one_process: Process, shard: Shard) -> None:
    whole = read_all(shard.directory)
    writer = ShardWriter(shard, shard.values_path.stat().st_size // 9)
    try:
        with pytest.raises(UserError, match="Another process writes"):
            embed_dataset(plan_embedding(make_export()), one_process)
    finally:
        writer.close()
    assert read_all(shard.directory) == whole


def test_replaced_images_are_refused_by_name(
    make_export: MakeExport, one_process: Process, shard: Shard, tmp_path: Path, photographs_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(photographs_path, data)
    first, second, third, *_ = sorted((data / "images" / "train").iterdir())
    config = make_export(data=data)
    assert embed_dataset(plan_embedding(config), one_process).embedded == 0
    content = third.read_bytes()
    third.write_bytes(content[:15] + bytes([content[15] ^ 1]) + content[16:])  # of the same size
    assert embed_dataset(plan_embedding(config), one_process).embedded == 0
    with pytest.raises(UserError, match=f"'{third.stem}' is not what the embeddings"):
        check_saved_embeddings(plan_embedding(config), one_process)
    first.write_bytes(second.read_bytes())
    with pytest.raises(UserError, match=f"'{first.stem}' is not what the embeddings"):
        embed_dataset(plan_embedding(config), one_process)
    arguments = ["store", "verify", str(shard.directory), "--data-path", str(data), "--repair"]
    assert main(arguments) == 0
    assert {first.stem, third.stem}.isdisjoint(os.fsdecode(key) for key in EmbeddingStore(shard.directory).ids)
    assert embed_dataset(plan_embedding(config), one_process).embedded == 2
