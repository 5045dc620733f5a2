import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from efficientsam3.config.schema import ExportConfig
from efficientsam3.embed.plan import plan_embedding
from efficientsam3.embed.verify import check_saved_embeddings
from efficientsam3.runtime.distributed import Process
from efficientsam3.runtime.errors import UserError
from efficientsam3.store.shards import Shard
from efficientsam3.store.writer import ShardWriter
from two_processes import fork_two
from unit.embed.embed_on_two import embed_twice_and_check

MakeExport = Callable[..., ExportConfig]


def test_a_good_store_agrees(make_export: MakeExport, one_process: Process, store_path: Path) -> None:
    agreement = check_saved_embeddings(plan_embedding(make_export(output=store_path)), one_process)
    assert agreement.images == 9
    assert agreement.worst_relative_error < 1e-3
    assert agreement.cosine > 0.999999
    assert agreement.disagreeing == ()


@pytest.mark.parametrize("samples", [1, 2, 8])
def test_a_sample_is_compared(make_export: MakeExport, one_process: Process, store_path: Path, samples: int) -> None:
    plan = plan_embedding(make_export(output=store_path))
    assert check_saved_embeddings(plan, one_process, samples).images == samples


def test_a_wrong_embedding_is_found_by_name(
    make_export: MakeExport, one_process: Process, store_path: Path, tmp_path: Path
) -> None:
    output = tmp_path / "teacher"
    shutil.copytree(store_path, output)
    shard = Shard(output / "embeddings", 0)
    values, keys = bytearray(shard.values_path.read_bytes()), shard.read_keys()
    size = len(values) // len(keys)
    for path in (shard.values_path, shard.crc_path, shard.keys_path):
        path.unlink()
    # The embeddings of two images change places, with checksums that fit: a fault no checksum finds.
    order = [1, 0, *range(2, len(keys))]
    writer = ShardWriter(shard, size)
    for index, key in enumerate(keys):
        record = bytearray(values[order[index] * size : (order[index] + 1) * size])
        record[:4] = values[index * size : index * size + 4]
        import numpy as np

        writer.append(key.decode(), np.frombuffer(bytes(record), np.uint8))
    writer.commit()
    writer.close()
    with pytest.raises(UserError, match="2 of 9 stored embeddings differ"):
        check_saved_embeddings(plan_embedding(make_export()), one_process)


def test_without_a_store_there_is_nothing_to_check(
    make_export: MakeExport, one_process: Process, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no embedding store"):
        check_saved_embeddings(plan_embedding(make_export()), one_process)
    assert not (tmp_path / "teacher").exists()


def test_two_processes_embed_once_find_nothing_left_and_check_all(make_export: MakeExport, tmp_path: Path) -> None:
    config = make_export("DATA.BATCH_SIZE", "2")
    fork_two(embed_twice_and_check, config.model_dump_json(), tmp_path / "found.json")
    first, again, agreement = json.loads((tmp_path / "found.json").read_text())
    assert (first["embedded"], first["present"]) == (9, 0)
    assert (again["embedded"], again["present"]) == (0, 9)
    assert {len(Shard(config.output_dir / "embeddings", rank).read_keys()) for rank in (0, 1)} == {4, 5}
    assert (agreement["images"], agreement["disagreeing"]) == (9, [])
