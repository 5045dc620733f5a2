"""The GPU benchmark, tried out on the CPU in small: what is measured, not how fast it is."""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from efficientsam3.benchmark import gpu
from efficientsam3.benchmark.gpu import GpuReport, Row, measure_gpu
from efficientsam3.benchmark.gpu_device import describe_kernels, describe_step
from efficientsam3.benchmark.gpu_tables import gpu_table
from efficientsam3.benchmark.parameters import compare_models
from efficientsam3.cli import main
from efficientsam3.train.batches import TrainBatch
from efficientsam3.train.loop import Trainer
from efficientsam3.train.objective import Losses

CPU = torch.device("cpu")
SUBJECTS = [f"trunk, batch 1, {way}" for way in ("eager", "compiled")]
SUBJECTS += ["embed", "embed, compiled", "write a store", "train es_ev_s"]


@pytest.fixture(autouse=True)
def _without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A C++ compiler would take a minute."""
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: None)


@pytest.mark.slow
def test_everything_is_measured_on_the_cpu_in_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gpu.json"
    brief = ["--student", "es_ev_s", "--batch-size", "2", "--device", "cpu", "--small"]
    assert main(["benchmark", "gpu", *brief, "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert report["failures"] == {}
    assert [row["subject"] for row in report["rows"]] == [*SUBJECTS, "train es_ev_s from the store"]
    assert all(row["rate"] > 0 for row in report["rows"])
    assert report["peak"] > 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(text in shown for text in ("torch", "timm", "transformers", "square matrices in float32", *SUBJECTS))
    assert "differs by 0.0e+00 from eager" in shown
    assert "waits for data" in shown


def test_the_full_size_needs_a_cuda_device(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["benchmark", "gpu"]) == 2
    assert "PyTorch sees no CUDA device here" in capsys.readouterr().err
    assert main(["benchmark", "gpu", "--device", "cpu"]) == 2
    assert "add --small" in capsys.readouterr().err


@pytest.mark.slow
def test_what_fails_is_reported_and_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that does not fit is halved; the embedding cannot be done at all."""
    compute = Trainer._loss

    def short_of_memory(trainer: Trainer, model: torch.nn.Module, batch: TrainBatch) -> Losses:
        if len(batch.pixels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB.")
        return compute(trainer, model, batch)

    def broken(*_: object) -> None:
        raise RuntimeError("CUDA error: unknown\nmore of it")

    monkeypatch.setattr(Trainer, "_loss", short_of_memory)
    monkeypatch.setattr(gpu, "measure_rate", broken)
    report = measure_gpu(CPU, ["es_ev_s"], batch=8, small=True)
    rows = {row.subject: row for row in report.rows}
    assert (rows["embed"].rate, rows["embed"].note) == (None, "failed: CUDA error: unknown")
    assert "CUDA error: unknown" in report.failures["embed"]
    assert rows["train es_ev_s"].batch == 2
    assert rows["train es_ev_s"].note.endswith("GB; out of memory at batch 4")
    assert len(gpu_table(report).rows) == len(report.rows)


def test_what_there_is_no_time_for_is_left_out() -> None:
    report = measure_gpu(CPU, ["es_ev_s"], seconds=0, small=True)
    assert {row.note for row in report.rows} == {"left out: no time left"}
    assert {row.rate for row in report.rows} == {None}


def test_the_share_is_of_the_measured_peak() -> None:
    [student] = compare_models(["es_ev_s"]).students
    row = Row("train es_ev_s", 32, rate=500.0, gflops=6 * student.macs / 1e9)
    report = GpuReport({}, "bfloat16", 800.0, (row,), 1.0, {})
    assert report.share(row) == pytest.approx(500 * 6 * student.macs / 800e12)


def test_waits_and_gradients_in_another_layout_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    model = torch.nn.Conv2d(4, 8, 1)

    def step() -> None:
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        model(torch.randn(2, 4, 8, 8).contiguous(memory_format=torch.channels_last)).sum().backward()
        model.zero_grad()

    hook = model.weight.register_hook(lambda gradient: gradient.as_strided(gradient.shape, (4, 1, 4, 4)))
    cuda = torch.device("cuda")
    assert describe_step(step, model, cuda) == "2 waits a step, 1 gradients in another layout"
    hook.remove()
    assert describe_step(step, model, cuda) == "2 waits a step, 0 gradients in another layout"
    assert modes == ["warn", "default"] * 2


def test_the_gpu_is_idle_between_kernels() -> None:
    def event(name: str, start: float, end: float, device: DeviceType = DeviceType.CUDA) -> SimpleNamespace:
        return SimpleNamespace(name=name, time_range=SimpleNamespace(start=start, end=end), device_type=device)

    events = [
        event("warm-up", 0, 1),
        event("gemm", 100, 130),
        event("add", 120, 140),  # in another stream
        event("Memcpy DtoH (Device -> Pageable)", 140, 150),
        event("cudaStreamSynchronize", 150, 190, DeviceType.CPU),
        event("gemm", 190, 200),
    ]
    assert describe_kernels(events, 0.25) == "the GPU computes 50 % of the time and copies back 10 %"
