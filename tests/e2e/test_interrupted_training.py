"""Trainings on two processes that are asked to end by signals, or of which one fails, and then simply run again."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import torch

from e2e.failing_training import KILLED, RAISED, STUCK
from e2e.processes import ROOT, copy_photographs, environment, marked
from efficientsam3.checkpoints.training import latest_checkpoint, load_training_checkpoint
from efficientsam3.config.load import load_config
from efficientsam3.config.schema import ExportConfig
from efficientsam3.embed.plan import plan_embedding
from efficientsam3.embed.run import embed_dataset
from efficientsam3.runtime.distributed import Process
from faults.system import small_disk
from two_processes import fork_two, run_as_one_of_two

IMAGES, EPOCHS = 24, 3
FAILING = "tests/e2e/failing_training.py"
TINY = ["DATA.IMG_SIZE", "224", "DISTILL.EMBED_SIZE", "16", "DISTILL.EMBED_DIM", "64", "DATA.NUM_WORKERS", "0"]


class Training:
    """The training by its launcher, on two processes, whose descendants bear a mark in their environment."""

    def __init__(self, root: Path, output: Path, script: str = "") -> None:
        self.output, self._mark = output, uuid.uuid4().hex
        where = ["CFG=stage1/configs/es_ev_s.yaml", f"DATA_PATH={root / 'data'}", f"OUTPUT={output}", "GPUS=2"]
        more = ["DISTILL.TEACHER_EMBED_PATH", str(root / "teacher" / "embeddings"), "DATA.NUM_WORKERS", "1"]
        schedule = ["TRAIN.EPOCHS", str(EPOCHS), "TRAIN.WARMUP_EPOCHS", "1", "PRINT_FREQ", "1", "TRAIN.EMA", "0.9"]
        if script:
            schedule = ["TRAIN.EPOCHS", "2", *schedule[2:], "TRAIN.SAVE_STEPS", "4"]
        options = ["--pretrained", "false", "--opts", *TINY[:-2], *more, *schedule]
        launcher = ["bash", "stage1/scripts/train_stage1_student.sh"]
        if script:  # as the launcher starts its own
            launcher = [sys.executable, "-m", "efficientsam3.workflow.launcher", "launcher", script, where[0][4:]]
        self.command = [*launcher, *where, "BATCH_SIZE=1", *options]
        paths = ["--cfg", str(ROOT / "stage1/configs/es_ev_s.yaml"), "--data-path", str(root / "data")]
        self.arguments = ["train", *paths, "--output", str(output), "--batch-size", "1", *options]
        self._environment = environment(self._mark)

    def start(self, **variables: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.command,
            cwd=ROOT,
            env=self._environment | variables,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def finish(self, **variables: str) -> None:
        process = self.start(**variables)
        _, errors = process.communicate(timeout=280)
        assert process.returncode == 0, errors

    def wait_for(self, epoch: int, batch: int, process: "subprocess.Popen[str]") -> None:
        """Wait until the log says that a batch is done."""
        log, deadline = self.output / "log_rank0.txt", time.monotonic() + 200
        while not (log.exists() and f"epoch {epoch} batch {batch}/" in log.read_text()):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def processes(self) -> list[int]:
        """Launcher, torchrun, workers, and their data loaders."""
        return marked(self._mark)

    def metrics(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.output / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny_sam3_path, photographs_path):
    """Nine photographs under many names, and their embeddings."""
    folder = tmp_path_factory.mktemp("training")
    copy_photographs(photographs_path, folder / "data", train=IMAGES, val=4)
    fixed = {"MODEL.RESUME": tiny_sam3_path, "DATA.DATA_PATH": folder / "data", "OUTPUT": folder / "teacher"}
    config = load_config(ExportConfig, ROOT / "stage1/configs/teacher/sam_vit_huge_sa1b.yaml", TINY, fixed)
    embed_dataset(plan_embedding(config), Process(rank=0, world_size=1, device=torch.device("cpu"), launcher=None))
    return folder


@pytest.mark.timeout(900)  # three launches
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds descendants in /proc")
def test_signals_save_within_a_step_and_the_numbers_are_those_of_an_undisturbed_run(root: Path) -> None:
    undisturbed, disturbed = Training(root, root / "undisturbed"), Training(root, root / "disturbed")
    fork_two(run_as_one_of_two, undisturbed.arguments)

    def launcher(process: "subprocess.Popen[str]", number: int) -> None:
        process.send_signal(number)

    def everyone(process: "subprocess.Popen[str]", number: int) -> None:  # as schedulers do
        for pid in disturbed.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    for epoch, (send, number) in enumerate(
        [(launcher, signal.SIGUSR1), (launcher, signal.SIGTERM), (everyone, signal.SIGTERM)]
    ):
        process = disturbed.start()
        disturbed.wait_for(epoch, 3, process)
        send(process, number)
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
        assert disturbed.processes() == []
        path = latest_checkpoint(disturbed.output)
        content = load_training_checkpoint(path)
        assert path.name == f"ckpt_step_{content['step']}.pth"
        assert (content["epoch"], content["finished"]) == (epoch, False)
        assert 6 <= content["position"] < IMAGES
    fork_two(run_as_one_of_two, disturbed.arguments)
    assert disturbed.metrics() == undisturbed.metrics()
    assert len(disturbed.metrics()) == EPOCHS
    theirs, ours = (load_training_checkpoint(latest_checkpoint(each.output)) for each in (undisturbed, disturbed))
    for part in ("model", "ema"):
        for key, value in theirs[part].items():
            assert torch.equal(ours[part][key], value), (part, key)
    assert list(disturbed.output.glob("ckpt_step_*")) == []


@pytest.fixture(scope="module")
def undisturbed(root: Path) -> list[dict[str, float]]:
    """Figures of what the failing trainings would train."""
    training = Training(root, root / "not_failing", FAILING)
    fork_two(run_as_one_of_two, training.arguments)
    return training.metrics()


@pytest.mark.slow
@pytest.mark.timeout(900)  # two launches
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds descendants in /proc")
@pytest.mark.parametrize(
    ("how", "code", "sentences"),
    [
        (RAISED, 1, ["a bug (ArithmeticError only here)"]),
        (KILLED, 137, ["Process 0 of 2 has lost another", "Process 1 was ended by SIGKILL, and the others with it"]),
        (STUCK, 1, ["a bug (ArithmeticError only here)"]),
        ("full disk", 2, ["No space left on device"]),
    ],
)
def test_no_process_outlives_one_that_fails_while_it_is_waited_for(
    root: Path,
    tmp_path: Path,
    undisturbed: list[dict[str, float]],
    capsys: pytest.CaptureFixture[str],
    how: str,
    code: int,
    sentences: list[str],
) -> None:
    """The others are in a collective by then. The sentence comes at once; the same command goes on once it can."""
    disk = tmp_path / "disk"
    training = Training(root, disk / "training", FAILING)
    with small_disk(disk, "8m") if how == "full disk" else nullcontext(disk):
        process = training.start(NOTES=str(tmp_path), **({} if how == "full disk" else {"FAILURE": f"1:6:{how}"}))
        assert process.stderr is not None
        said = [(time.time(), " ".join(line.split())) for line in process.stderr]
        assert process.wait(60) == code, said
        ended = time.time()
        assert training.processes() == []
        if how == "full disk":
            subprocess.run(["mount", "-o", "remount,size=1g", disk], check=True)
            [failed] = [at for at, line in said if sentences[0] in line]
        else:
            failed = (tmp_path / "failed").stat().st_mtime
        with capsys.disabled():
            print(f"\n{how}: ended after {ended - failed:.1f} s")
            print(*(f"{at - failed:5.1f} {line}" for at, line in said if at >= failed), sep="\n")
        for sentence in sentences:
            assert any(sentence in line for _, line in said), said
        training.finish(NOTES=str(tmp_path))
        assert training.metrics() == undisturbed
