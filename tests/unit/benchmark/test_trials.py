"""The table of trials, with a command that only claims to train."""

import importlib.util
import json
import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from efficientsam3.runtime.errors import UserError

FILE = Path(__file__).parents[3] / "benchmarks" / "trials.py"
ROWS = """
train: --cfg a.yaml --data-path $data
opts: {TRAIN.EPOCHS: 2, MODEL.HEAD: fpn}
evaluate: --data $data
teacher: $data/store
decoder: sam.onnx
seeds: [3]
rows:
  plain: {}
  other: {train: --use-checkpoint, opts: {MODEL.HEAD: published, DISTILL.TERMS.gradient: 1.5}, seeds: [3, 4]}
  bad: {opts: {FAIL: true}}
"""
# What the fake command is: half a second of CPU to train; with `SLOW` it waits to be told to end.
FAKE = """
import json, os, shutil, signal, sys, time
from pathlib import Path
arguments = sys.argv[1:]
def value(flag): return arguments[arguments.index(flag) + 1]
assert os.environ["OMP_NUM_THREADS"] == "1"
if arguments[0] == "train":
    if "FAIL" in arguments:
        print("noise")
        sys.exit("efficientsam3 train: Nothing | is right: mend it.")
    run = Path(value("--output")); run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(json.dumps({"TRAIN": {"EPOCHS": 2}}))
    metrics = run / "metrics.jsonl"
    lines = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    for epoch in range(lines, 2):
        end = time.process_time() + 0.1
        while time.process_time() < end: pass
        with metrics.open("a") as file:
            file.write(json.dumps({"epoch": epoch, "val/relative_mse": 0.5, "val/cosine": 0.25}) + "\\n")
        shutil.copy(CHECKPOINT, run / f"ckpt_epoch_{epoch}.pth")
        if Path(MARK).exists():
            Path(MARK).unlink()
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            time.sleep(60)
else:
    out = Path(value("--out")); out.mkdir(exist_ok=True)
    models = [each for each in arguments[1:4] if "=" in each or each == "zeros"]
    assert [each.partition("=")[0] for each in models] == ["teacher", "student", "zeros"]
    assert models[1].endswith("ckpt_epoch_1.pth")
    better = 0.1 if "other" in models[1] else 0.0
    miou = {"teacher": 0.8, "student": 0.4 + better, "zeros": 0.2}
    summary = [{"model": m, "prompt": p, "miou": v, "share": v / 0.8, "share_interval": [0.1, 0.9]}
               for p in ("box", "point") for m, v in miou.items()]
    images = {f"i{n}": [{"model": m, "number": 0, "prompt": p, "area": 9, "iou": v, "agreement": v, "score": v}
              for p in ("box", "point") for m, v in miou.items()] for n in range(3)}
    (out / "results.json").write_text(json.dumps({"summary": summary, "images": images}))
"""


@pytest.fixture(scope="module")
def trials() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trials", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["trials"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def command(tmp_path: Path, trials: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    checkpoint, script = tmp_path / "whole.pth", tmp_path / "fake.py"
    torch.save({"images": 6, "step": 12, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2, 5)}}}}, checkpoint)
    monkeypatch.setattr(trials, "load_training_checkpoint", torch.load)
    mark = tmp_path / "SLOW"
    script.write_text(f"CHECKPOINT, MARK = {str(checkpoint)!r}, {str(mark)!r}\n{FAKE}")
    (tmp_path / "rows.yaml").write_text(ROWS)
    return [sys.executable, str(script)]


def arguments(folder: Path, *more: str) -> list[str]:
    return [str(folder / "rows.yaml"), "--out", str(folder / "out"), "--set", "data=DATA", *more]


def record(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "out" / name / "row.json").read_text())
    return content


def test_rows_become_a_table_and_what_fails_says_why(trials: ModuleType, command: list[str], tmp_path: Path) -> None:
    trials.run_trials(arguments(tmp_path), command)
    plain = record(tmp_path, "plain-seed3")
    assert plain["train"] == shlex.split(
        f"train --cfg a.yaml --data-path DATA --output {tmp_path}/out/plain-seed3/run "
        "--opts TRAIN.EPOCHS 2 MODEL.HEAD fpn SEED 3"
    )
    assert (plain["images_seen"], plain["parameters"], plain["relative_mse"], plain["cosine"]) == (12, 10, 0.5, 0.25)
    assert 0.2 <= plain["cpu_s"]["train"] < 30
    other = record(tmp_path, "other-seed4")["train"]
    assert "--use-checkpoint" in other
    assert other[-6:] == ["MODEL.HEAD", "published", "DISTILL.TERMS.gradient", "1.5", "SEED", "4"]
    table = (tmp_path / "out" / "trials.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table if line.startswith("|")]
    assert {len(row) for row in cells} == {13}
    assert [row[:2] for row in cells[2:]] == [
        ["teacher", ""], ["zeros", ""], ["plain", "3"], ["other", "3"], ["other", "4"], ["other", "mean of 2"],
        ["bad", "3"],
    ]  # fmt: skip
    assert cells[2][7:9] == ["0.800", "100.0 % (10 to 90)"]
    assert cells[5][7:] == ["0.500", "62.5 % (10 to 90)", "0.500", "62.5 % (10 to 90)"] + 2 * [
        "+0.100 (+0.100 to +0.100)"
    ]
    assert cells[6][11:] == ["", ""], "there is no first row of that seed"
    assert cells[8][2] == "failed: efficientsam3 train: Nothing / is right: mend it."


def test_done_rows_are_skipped_and_failed_ones_tried_again(
    trials: ModuleType, command: list[str], tmp_path: Path
) -> None:
    trials.run_trials(arguments(tmp_path, "--only", "plain", "bad"), command)
    before = record(tmp_path, "plain-seed3")
    assert not (tmp_path / "out" / "other-seed3").exists()
    mended = [*command[:-1], str(tmp_path / "mended.py")]
    (tmp_path / "mended.py").write_text(Path(command[-1]).read_text().replace('"FAIL" in', '"NO" in'))
    trials.run_trials(arguments(tmp_path, "--only", "plain", "bad"), mended)
    assert record(tmp_path, "plain-seed3") == before
    assert record(tmp_path, "bad-seed3")["done"]
    trials.run_trials(arguments(tmp_path, "--only", "plain", "--seeds", "9"), command)
    trials.run_trials(arguments(tmp_path, "--only", "plain"), command)
    table = (tmp_path / "out" / "trials.md").read_text()
    assert "| plain | 9 |" in table, "a further seed stays"
    assert "| other | 4 | not run |" in table


def test_a_row_that_was_killed_goes_on_and_its_cpu_time_adds_up(
    trials: ModuleType, command: list[str], tmp_path: Path
) -> None:
    (tmp_path / "SLOW").touch()

    def interrupt() -> None:
        while (tmp_path / "SLOW").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    waiting = threading.Thread(target=interrupt)
    waiting.start()
    trials.run_trials(arguments(tmp_path, "--only", "plain"), command)
    waiting.join()
    stopped = record(tmp_path, "plain-seed3")
    assert "done" not in stopped
    assert "failed" not in stopped
    trials.run_trials(arguments(tmp_path, "--only", "plain"), command)
    after = record(tmp_path, "plain-seed3")
    assert after["done"]
    assert after["cpu_s"]["train"] > stopped["cpu_s"]["train"] + 0.1
    assert after["lost_attempts"] == 0


def test_what_is_wrong_is_refused_before_anything_runs(trials: ModuleType, command: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no row 'none': use plain, other, bad"):
        trials.run_trials(arguments(tmp_path, "--only", "none"), command)
    with pytest.raises(UserError, match=r"lacks a value \('data'\).*--set"):
        trials.run_trials([str(tmp_path / "rows.yaml"), "--out", str(tmp_path / "out")], command)
    trials.run_trials(arguments(tmp_path, "--only", "bad"), command)
    (tmp_path / "rows.yaml").write_text(ROWS.replace("FAIL", "FAILED"))
    with pytest.raises(UserError, match=r"bad-seed3 holds a trial with other options.*another name"):
        trials.run_trials(arguments(tmp_path), command)
    assert not (tmp_path / "out" / "plain-seed3").exists()
    (tmp_path / "rows.yaml").write_text(ROWS.replace("rows:", "lines:"))
    with pytest.raises(UserError, match=r"lines"):
        trials.run_trials(arguments(tmp_path), command)


def test_the_published_rows_are_read(trials: ModuleType, tmp_path: Path) -> None:
    values = dict.fromkeys(("data", "measured", "store", "decoder"), "X")
    found = trials.read_trials(FILE.with_suffix(".yaml"), tmp_path, values)
    assert found[0].name == "features"
    assert len({trial.folder for trial in found}) == len(found)
