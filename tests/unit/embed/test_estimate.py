import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from efficientsam3.cli import main
from efficientsam3.config.schema import ExportConfig
from efficientsam3.embed import estimate
from efficientsam3.embed.estimate import EmbedEstimate, EmbedRate, estimate_embedding, measure_rate
from efficientsam3.embed.plan import missing_images, plan_embedding
from efficientsam3.runtime.distributed import Process
from efficientsam3.runtime.errors import UserError
from efficientsam3.store.writer import ShardWriter

MakeExport = Callable[..., ExportConfig]


def test_it_counts_bytes_and_measures_and_writes_nothing(
    make_export: MakeExport, one_process: Process, tmp_path: Path
) -> None:
    plan = plan_embedding(make_export("DATA.BATCH_SIZE", "2", "DISTILL.CODEC", "pca5-int4"))
    found = estimate_embedding(plan, one_process)
    assert (found.images, found.missing) == (9, 9)
    assert found.codec_sizes["float16"] == 9 * (4 + 2 * 64 * 16 * 16)
    assert found.codec_sizes["pca5-int4"] < found.codec_sizes["int4"] < found.codec_sizes["int8"]
    assert found.rate is not None
    assert found.rate.images > 0
    assert (found.rate.batches, found.rate.warm_up) == (1, 2)  # of six images in train
    assert found.memory is not None
    assert found.memory > 1e6
    assert list(tmp_path.iterdir()) == []


def test_what_was_read_ahead_is_not_timed_and_everything_is_written(
    make_export: MakeExport, one_process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed: list[int] = []
    commit = ShardWriter.commit

    def spy(writer: ShardWriter) -> None:
        commit(writer)
        committed.append(len(writer._shard.read_keys()))

    monkeypatch.setattr(ShardWriter, "commit", spy)
    monkeypatch.setattr(estimate, "BUFFERS", 1)
    plan = replace(plan_embedding(make_export("DATA.BATCH_SIZE", "1")), num_workers=1)
    rate = measure_rate(plan, missing_images(plan), one_process, batches=3)
    assert (rate.batches, rate.warm_up) == (3, 2 + 1)
    assert committed[-1] == 3 + 3
    assert list(tmp_path.iterdir()) == []


def test_a_slow_teacher_is_measured_by_fewer_batches(make_export: MakeExport, one_process: Process) -> None:
    plan = plan_embedding(make_export("DATA.BATCH_SIZE", "2"))
    rate = measure_rate(plan, missing_images(plan), one_process, batches=20, seconds=0)
    assert (rate.batches, rate.warm_up) == (1, 1)


def test_a_disk_without_room_is_refused(
    make_export: MakeExport, one_process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_embedding(make_export("DATA.BATCH_SIZE", "2"))
    size = 2 * plan.manifest.record_size
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, 6 * size))
    assert measure_rate(plan, missing_images(plan), one_process, batches=20).batches == 1
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, 4 * size - 1))
    with pytest.raises(UserError, match=f"{tmp_path} has no room for the 0.000 GB"):
        measure_rate(plan, missing_images(plan), one_process, batches=20)


def test_what_the_store_has_is_not_counted(make_export: MakeExport, one_process: Process, store_path: Path) -> None:
    found = estimate_embedding(plan_embedding(make_export(output=store_path)), one_process)
    assert found.missing == 0
    assert found.codec_sizes["float16"] == 0
    assert found.seconds(8) == 0


def test_more_processes_take_less_time() -> None:
    found = EmbedEstimate(100, 80, 0, {}, EmbedRate(2.0, 20, 4), 0)
    assert (found.seconds(1), found.seconds(8)) == (40, 5)


def test_the_command(
    tiny_sam3_path: Path, photographs_path: Path, tiny_opts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--cfg", "stage1/configs/teacher/sam_vit_huge_sa1b.yaml", "--resume", str(tiny_sam3_path)]
    where = ["--data-path", str(photographs_path), "--only-cpu", "--opts", *tiny_opts]
    assert main(["plan", *flags, *where, "--batches", "1"]) == 0
    out = capsys.readouterr().out
    assert "9 images, 9 of them to embed" in out
    assert "float16 (chosen)" in out
    assert "64 such: " in out
    assert "over 1 batches after 1 to warm up" in out
