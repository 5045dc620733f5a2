"""From images to a merged model in one command, interrupted on the way."""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from e2e.processes import ROOT, environment
from efficientsam3 import EfficientSAM3
from efficientsam3.train.metrics import read_metrics

EPOCHS = 3
FLAGS = ["--student", "es_ev_s", "--epochs", EPOCHS, "--batch-size", 2, "--pretrained", "false", "--workers", 0]
FLAGS += ["--device", "cpu"]


def distill(images: Path, sam3: Path, out: Path) -> list[str]:
    return [
        str(part) for part in ("efficientsam3", "distill", "--images", images, "--sam3", sam3, "--out", out, *FLAGS)
    ]


def interrupt(command: list[str], when: Callable[[], bool]) -> str:
    """Start, send SIGTERM once `when` says so, and wait for the end; returns what was printed."""
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        deadline = time.monotonic() + 200
        while not when() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, process.communicate()[0]
        process.send_signal(signal.SIGTERM)
        printed = process.communicate(timeout=100)[0]
    assert process.returncode == 0, printed
    return printed


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, run, tiny_sam3_path: Path, photographs_path: Path) -> Path:
    """The output of a run that was interrupted in its export and in its training."""
    out = tmp_path_factory.mktemp("distill") / "out"
    command = distill(photographs_path, tiny_sam3_path, out)
    printed = interrupt(command, (out / "teacher" / "embeddings" / "manifest.json").exists)
    assert "asked to end" in printed
    assert not (out / "student").exists()
    printed = interrupt(command, (out / "student" / "ckpt_epoch_0.pth").exists)
    assert "plan: complete" in printed
    assert not (out / "efficient_sam3.pt").exists()
    (out / "printed.txt").write_text(run(*command).stdout)
    return out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_ends_with_a_model_that_answers(made: Path, photographs_path: Path) -> None:
    epochs = read_metrics(made / "student" / "metrics.jsonl")
    assert len(epochs) == EPOCHS
    assert "probe/box_miou" in epochs[-1]
    photo = next((photographs_path / "images" / "val").glob("*.jpg"))
    image = EfficientSAM3.from_pretrained(made / "efficient_sam3.pt", device="cpu").encode(photo)
    assert len(image.segment(points=[(20, 20)]).masks) == 1
    results = json.loads((made / "evaluate" / "results.json").read_text())
    assert {row["model"] for row in results["summary"]} == {"teacher", "student", "zeros", "random"}
    assert (made / "evaluate" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_is_complete_is_not_done_again(made: Path, run, photographs_path: Path, tiny_sam3_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*.p*t*") if path.is_file()}
    printed = run(*distill(photographs_path, tiny_sam3_path, made)).stdout
    assert [line for line in printed.splitlines() if line.endswith(": complete")] == [
        "plan: complete", "evaluate: complete", "merge: complete",
    ]  # fmt: skip
    kept = {path: path.stat().st_mtime_ns for path in before}
    assert kept == before


def test_photos_without_masks_and_without_a_store(tmp_path: Path, run, photographs_path, tiny_sam3_path) -> None:
    for number, path in enumerate(sorted(photographs_path.rglob("*.jpg"))):
        folder = tmp_path / "photos" / ("val" if number < 2 else "train")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path.name)
    out = tmp_path / "out"
    printed = run(*distill(tmp_path / "photos", tiny_sam3_path, out), "--online", "--epochs", 1).stdout
    assert "no masks to measure with" in printed
    assert not (out / "teacher").exists()
    assert not (out / "evaluate").exists()
    assert torch.load(out / "efficient_sam3.pt", weights_only=True)
    assert read_metrics(out / "student" / "metrics.jsonl")[-1]["val/loss"] > 0
