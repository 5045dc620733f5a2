"""Signals reach the processes that can act on them; a shell with two children stands in for torchrun."""

import os
import signal
import sys
from pathlib import Path

import pytest

from efficientsam3.runtime import launch
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.launch import run_alone, run_torchrun

# Each notes the signal, and the first to be asked says that all is saved.
WORKER = """
import os, signal, sys, time
from pathlib import Path
def end(number, _):
    Path(sys.argv[1], f"{os.getpid()}-{number}").touch()
    Path(os.environ["EFFICIENTSAM3_SAVED"]).touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGUSR1, end)
Path(sys.argv[1], f"ready-{os.getpid()}").touch()
if len(list(Path(sys.argv[1]).glob("ready-*"))) == int(sys.argv[2]):
    os.kill(int(sys.argv[3]), int(sys.argv[4]))
time.sleep(60)
"""


def worker(folder: Path, count: int, number: int) -> list[str]:
    return [sys.executable, "-c", WORKER, str(folder), str(count), str(os.getpid()), str(number)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_workers_get_the_signals_and_what_they_saved_counts(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "bin" / "python"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nshift 2\n"$@" & "$@" & wait; wait; exit 1\n')
    fake.chmod(0o755)
    (tmp_path / "seen").mkdir()
    command = worker(tmp_path / "seen", 2, int(number))
    monkeypatch.setattr(launch.sys, "executable", str(fake))
    outcome = run_torchrun(2, command)
    assert set(outcome.signals) == {number}  # each worker sends one, and two may come before the first is seen
    assert outcome.code == 0
    ended = [path.name for path in (tmp_path / "seen").iterdir() if not path.name.startswith("ready")]
    assert len(ended) == 2
    assert all(name.endswith(f"-{int(number)}") for name in ended)


def test_a_single_command_is_asked_to_end(tmp_path: Path) -> None:
    outcome = run_alone(worker(tmp_path, 1, int(signal.SIGUSR1)))
    assert (outcome.code, outcome.signals) == (0, (signal.SIGUSR1,))
    assert [path.name.split("-")[1] for path in tmp_path.iterdir() if "ready" not in path.name] == ["15"]


def test_cores_are_shared_unless_the_user_says_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\necho $OMP_NUM_THREADS > {tmp_path / 'threads'}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(launch.sys, "executable", str(fake))
    monkeypatch.setattr(launch, "usable_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert run_torchrun(3, []).code == 0
    assert (tmp_path / "threads").read_text() == "2\n"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    run_torchrun(3, [])
    assert (tmp_path / "threads").read_text() == "5\n"


def test_tmpdir_that_is_no_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"TMPDIR=.*absent is not a folder"):
        run_alone(["true"])


@pytest.mark.parametrize(
    ("script", "code"), [("raise SystemExit(2)", 2), ("import os; os.kill(os.getpid(), 9)", 137), ("pass", 0)]
)
def test_torchrun_returns_the_workers_code_without_a_traceback(
    script: str, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--standalone", "--nproc-per-node", "1", "--no-python", sys.executable, "-c", script]
    assert run_torchrun(1, arguments).exit_code == code
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert said.count("\n") == (1 if code == 137 else 0)
