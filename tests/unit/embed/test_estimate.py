from collections.abc import Callable
from pathlib import Path

import pytest

from efficientsam3.cli import main
from efficientsam3.config.schema import ExportConfig
from efficientsam3.embed.estimate import EmbedEstimate, estimate_embedding
from efficientsam3.embed.plan import plan_embedding
from efficientsam3.runtime.distributed import Process

MakeExport = Callable[..., ExportConfig]


def test_it_counts_bytes_and_measures_and_writes_nothing(
    make_export: MakeExport, one_process: Process, tmp_path: Path
) -> None:
    plan = plan_embedding(make_export("DATA.BATCH_SIZE", "2", "DISTILL.CODEC", "pca5-int4"))
    estimate = estimate_embedding(plan, one_process)
    assert (estimate.images, estimate.missing) == (9, 9)
    assert estimate.codec_sizes["float16"] == 9 * (4 + 2 * 64 * 16 * 16)
    assert estimate.codec_sizes["pca5-int4"] < estimate.codec_sizes["int4"] < estimate.codec_sizes["int8"]
    assert estimate.rate > 0
    assert estimate.memory is not None
    assert estimate.memory > 1e6
    assert not (tmp_path / "teacher").exists()


def test_what_the_store_has_is_not_counted(make_export: MakeExport, one_process: Process, store_path: Path) -> None:
    estimate = estimate_embedding(plan_embedding(make_export(output=store_path)), one_process)
    assert estimate.missing == 0
    assert estimate.codec_sizes["float16"] == 0
    assert estimate.seconds(8) == 0


def test_more_processes_take_less_time() -> None:
    estimate = EmbedEstimate(100, 80, 0, {}, 2.0, 0)
    assert (estimate.seconds(1), estimate.seconds(8)) == (40, 5)


def test_the_command(
    tiny_sam3_path: Path, photographs_path: Path, tiny_opts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--cfg", "stage1/configs/teacher/sam_vit_huge_sa1b.yaml", "--resume", str(tiny_sam3_path)]
    where = ["--data-path", str(photographs_path), "--only-cpu", "--opts", *tiny_opts]
    assert main(["plan", *flags, *where]) == 0
    out = capsys.readouterr().out
    assert "9 images, 9 of them to embed" in out
    assert "float16 (chosen)" in out
    assert "64 such: " in out
