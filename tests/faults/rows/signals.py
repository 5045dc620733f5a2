"""Signals to an export and to a training, on one process and on two under the launchers; then the same line again."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from e2e.processes import environment, marked
from faults.fault import Fault, Place, Run, works

IMAGES = 48  # of an export, so that it takes a while
Send = Callable[["Job"], None]


class Job:
    """A launcher with two processes; whatever they start bears a mark in its environment."""

    def __init__(self, place: Place, script: str, arguments: Sequence[object]) -> None:
        self._mark = uuid.uuid4().hex
        path = place.checkout / "stage1/scripts" / script
        self.log = place.root / "launcher.txt"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["bash", path, *map(str, arguments)],
                cwd=place.root,
                env={**environment(self._mark), "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until it is at work."""
        deadline = time.monotonic() + 240
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def rank(self, number: int) -> int:
        """The process of a rank."""
        found = [
            pid
            for pid in marked(self._mark)
            if f"RANK={number}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ]
        return min(found)

    def members(self) -> list[int]:
        """All that live."""
        return marked(self._mark)

    def end(self) -> int:
        """Wait for the end of it and of everything that it started: its exit code."""
        code = self.process.wait(200)
        deadline = time.monotonic() + 120
        while self.members():
            assert time.monotonic() < deadline, f"{self.members()} live on\n{self.log.read_text()}"
            time.sleep(0.1)
        return code

    def kill(self) -> None:
        """Leave nothing."""
        for pid in self.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(60)


def _to_rank(number: int, sent: int) -> Send:
    return lambda job: os.kill(job.rank(number), sent)


def _to_launcher(sent: int, times: int = 1) -> Send:
    def send(job: Job) -> None:
        for _ in range(times):
            with contextlib.suppress(ProcessLookupError):
                job.process.send_signal(sent)
            time.sleep(0.3)

    return send


# --- trainings


def _train_line(place: Place, more: Sequence[object] = ()) -> list[object]:
    return [*place.train, "PRINT_FREQ", 1, *more]


def _training(send: Send, codes: set[int]) -> Callable[[Place, Run], None]:
    """A training on two processes gets a signal in its first epoch, leaves nothing running, and goes on."""

    def command(place: Place, run: Run) -> None:
        output = place.root / "training"
        where = [f"CFG={place.checkout}/stage1/configs/es_ev_s.yaml", f"DATA_PATH={place.data}", f"OUTPUT={output}"]
        keys = ["DISTILL.TEACHER_EMBED_PATH", place.store, "TRAIN.EPOCHS", 2, "TRAIN.WARMUP_EPOCHS", 0, "PRINT_FREQ", 1]
        arguments = [*where, "GPUS=2", "BATCH_SIZE=1", "--pretrained", "false", "--opts", *place.tiny, *keys]
        job = Job(place, "train_stage1_student.sh", arguments)
        try:
            log = output / "log_rank0.txt"
            job.wait_until(lambda: log.exists() and "epoch 0 batch 2/" in log.read_text())
            send(job)
            code = job.end()
        finally:
            job.kill()
        assert code in codes, f"{code}\n{job.log.read_text()}"
        # As many images a step, on one process.
        works()(place, run(_train_line(place), timeout=200))
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines] == [0, 1]
        assert (output / "ckpt_epoch_1.pth").exists()

    return command


def _at_random_moments(sent: int) -> Callable[[Place, Run], None]:
    def command(place: Place, run: Run) -> None:
        line = _train_line(place, ("TRAIN.SAVE_STEPS", 2))
        outcome = run(line, timeout=200)
        works()(place, outcome)
        output, undisturbed = place.root / "training", place.root / "undisturbed"
        output.rename(undisturbed)
        moments = random.Random(sent)
        for _ in range(6):
            run(line, timeout=200, signals=[(moments.uniform(0.3, max(2, outcome.seconds)), sent)])
        works()(place, run(line, timeout=200))
        ours, theirs = (
            [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
            for folder in (output, undisturbed)
        )
        assert ours == theirs
        weights = [
            torch.load(folder / "ckpt_epoch_1.pth", weights_only=True)["model"] for folder in (output, undisturbed)
        ]
        assert all(torch.equal(weights[0][key], value) for key, value in weights[1].items())

    return command


# --- exports


def _many_images(place: Place) -> list[str]:
    """Copies of one image, and all ids."""
    for number in range(IMAGES):
        shutil.copy(place.image, place.images / f"sa_{1000 + number}.jpg")
    return sorted(path.stem for split in ("train", "val") for path in (place.data / "images" / split).glob("*.jpg"))


def _stored(place: Place) -> list[str]:
    keys = (place.root / "teacher/embeddings").glob("rank*-keys.txt")
    return sorted(key for path in keys for key in path.read_text().splitlines())


def _export(send: Send, codes: set[int], goes_on: bool) -> Callable[[Place, Run], None]:
    """An export on two processes gets a signal, leaves nothing running; `goes_on`: the same line completes it."""

    def command(place: Place, run: Run) -> None:
        ids = _many_images(place)
        where = [f"DATA_PATH={place.data}", f"OUTPUT={place.root / 'teacher'}", "GPUS=2", "BATCH_SIZE=1"]
        job = Job(place, "save_stage1_embeddings.sh", [*where, "--resume", place.sam3, "--opts", *place.tiny])
        values = place.root / "teacher/embeddings/rank1-values.bin"
        try:
            job.wait_until(lambda: values.exists() and values.stat().st_size > 0)
            send(job)
            code = job.end()
        finally:
            job.kill()
        assert code in codes, f"{code}\n{job.log.read_text()}"
        if goes_on:
            works()(place, run(place.export, timeout=200))
            assert _stored(place) == ids
        works("0 damaged")(place, run("store verify {root}/teacher/embeddings"))

    return command


def _killed_ten_times(place: Place, run: Run) -> None:
    ids = _many_images(place)
    for seconds in (0.05, 0.2, 0.4, 0.6, 0.8, 1, 1.5, 2, 3.5, 5.5):
        run(place.export, signals=[(seconds, signal.SIGKILL)])
    works()(place, run(place.export, timeout=200))
    assert _stored(place) == ids
    works("0 damaged")(place, run("store verify {root}/teacher/embeddings"))


def _one_process(*sent: int) -> Callable[[Place, Run], None]:
    def command(place: Place, run: Run) -> None:
        ids = _many_images(place)
        outcome = run(place.export, signals=[(1.5 + 0.2 * number, each) for number, each in enumerate(sent)])
        assert not outcome.hung, outcome
        assert "Traceback (most recent call last)" not in outcome.err, outcome
        works()(place, run(place.export, timeout=200))
        assert _stored(place) == ids

    return command


ANY = set(range(-20, 256))
SAVED = {0}
_EXPORTS = [
    ("SIGTERM to rank 1 alone", _to_rank(1, signal.SIGTERM), ANY),
    ("SIGKILL to rank 0 alone", _to_rank(0, signal.SIGKILL), ANY - {0}),
    ("SIGHUP to the launcher", _to_launcher(signal.SIGHUP), ANY),
    ("Ctrl-C to the launcher", _to_launcher(signal.SIGINT), ANY),
]
_TRAININGS = [
    ("SIGKILL to rank 1 alone", _to_rank(1, signal.SIGKILL), ANY - {0}),
    ("SIGTERM to rank 1 alone: both save", _to_rank(1, signal.SIGTERM), SAVED),
    ("SIGKILL to the launcher alone", _to_launcher(signal.SIGKILL), ANY - {0}),
    ("SIGINT twice to the launcher", _to_launcher(signal.SIGINT, 2), ANY - {0}),
    ("SIGHUP to the launcher", _to_launcher(signal.SIGHUP), SAVED),
    ("SIGTERM three times to the launcher", _to_launcher(signal.SIGTERM, 3), SAVED),
    ("SIGHUP to one worker", _to_rank(0, signal.SIGHUP), ANY),
]
ROWS = [
    *(
        Fault(f"signals-h{number}", f"training on two: {what}", _training(send, codes), slow=True)
        for number, (what, send, codes) in enumerate(_TRAININGS, start=1)
    ),
    *(
        Fault(f"signals-h{number}", f"export on two: {what}", _export(send, codes, goes_on=False), slow=True)
        for number, (what, send, codes) in enumerate(_EXPORTS, start=8)
    ),
    *(
        Fault(f"signals-h{number}", f"... and goes on after {what}", _export(send, codes, goes_on=True), slow=True)
        for number, (what, send, codes) in enumerate(_EXPORTS, start=12)
    ),
    Fault("signals-h16", "export killed after 0.05 to 5.5 s, ten times, then run", _killed_ten_times, slow=True),
    Fault("signals-h17", "export on one: SIGINT twice", _one_process(signal.SIGINT, signal.SIGINT), slow=True),
    Fault("signals-h18", "export on one: SIGHUP", _one_process(signal.SIGHUP), slow=True),
    Fault("signals-h19", "export on one: SIGTERM", _one_process(signal.SIGTERM), slow=True),
    Fault("signals-h20", "export on one: SIGUSR1", _one_process(signal.SIGUSR1), slow=True),
    Fault("signals-h21", "training: SIGTERM at 6 random moments", _at_random_moments(signal.SIGTERM), slow=True),
    Fault("signals-h22", "training: SIGKILL at 6 random moments", _at_random_moments(signal.SIGKILL), slow=True),
]
