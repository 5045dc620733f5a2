"""The steps in their order, printed, left out once complete, ended by signals and failures; none is really run."""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import write_json
from efficientsam3.workflow import run as run_module
from efficientsam3.workflow.request import DistillRequest
from efficientsam3.workflow.run import StoppedError, distill, run_command


class Commands:
    """Stands in for the real ones: notes them, and leaves a checkpoint where a training would."""

    def __init__(self, student_dir: Path) -> None:
        self.seen: list[tuple[str, ...]] = []
        self.codes: dict[str, int] = {}
        self.stops: set[str] = set()
        self.weights = "weights"
        self._student_dir = student_dir

    def __call__(self, command: Sequence[str], processes: int = 1) -> int:
        assert (command[0] == "torchrun") == (processes > 1)
        self.seen.append(tuple(command))
        name = command[command.index("efficientsam3") + 1]
        if name in self.stops:
            raise StoppedError
        if name == "train":
            self._student_dir.mkdir(parents=True, exist_ok=True)
            (self._student_dir / "ckpt_epoch_9.pth").write_text("other")
            (self._student_dir / "ckpt_epoch_10.pth").write_text(self.weights)
        return self.codes.get(name, 0)

    def names(self) -> list[str]:
        names = [command[command.index("efficientsam3") + 1] for command in self.seen]
        self.seen.clear()
        return names


@pytest.fixture
def request_for(tiny_sam3_path: Path, photographs_path: Path, tmp_path: Path) -> DistillRequest:
    return DistillRequest(
        images=photographs_path, sam3=tiny_sam3_path, student="es_ev_s", out=tmp_path / "out", pretrained="false"
    )


@pytest.fixture
def commands(request_for: DistillRequest, monkeypatch: pytest.MonkeyPatch) -> Commands:
    fake = Commands(request_for.student_dir)
    monkeypatch.setattr(run_module, "run_command", fake)
    return fake


def test_each_step_is_printed_as_it_is_run(
    request_for: DistillRequest, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distill(request_for)
    printed = capsys.readouterr().out
    for command in commands.seen:
        assert f"$ {' '.join(command)}" in printed
    assert f"efficientsam3 predict {request_for.merged}" in printed
    assert commands.names() == ["plan", "embed", "train", "evaluate", "merge"]


def test_what_is_complete_is_left_out_until_the_student_changes(
    request_for: DistillRequest, commands: Commands
) -> None:
    distill(request_for)
    commands.names()
    distill(request_for)
    assert commands.names() == ["embed", "train"]
    commands.weights = "better"
    distill(request_for)
    assert commands.names() == ["embed", "train", "evaluate", "merge"]


def test_the_best_checkpoint_is_merged_else_the_last(request_for: DistillRequest, commands: Commands) -> None:
    distill(request_for)
    assert str(request_for.student_dir / "ckpt_epoch_10.pth") in commands.seen[-1]
    write_json(request_for.student_dir / "best.json", {"path": "ckpt_epoch_9.pth"})
    distill(request_for)
    assert str(request_for.student_dir / "ckpt_epoch_9.pth") in commands.seen[-1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"path": "ckpt', r"best\.json is not JSON"),
        ("[]", r"best\.json holds a list"),
        ('{"path": 5}', "names 5"),
        ('{"path": "../../x"}', "which is no checkpoint of its folder"),
        (
            '{"path": "ckpt_epoch_77.pth"}',
            r"ckpt_epoch_77\.pth.*go(es)? on with the last checkpoint, ckpt_epoch_10\.pth",
        ),
    ],
)
def test_a_damaged_best_json_is_named(
    request_for: DistillRequest, commands: Commands, content: str, message: str
) -> None:
    distill(request_for)
    (request_for.student_dir / "best.json").write_text(content)
    with pytest.raises(UserError, match=message):
        distill(request_for)


@pytest.mark.parametrize(("content", "message"), [('{"merge": {"comm', "is not JSON"), ("[]", "holds a list")])
def test_a_damaged_record_is_named_before_anything_runs(
    request_for: DistillRequest, commands: Commands, content: str, message: str
) -> None:
    request_for.out.mkdir()
    (request_for.out / "steps.json").write_text(content)
    with pytest.raises(UserError, match=rf"steps\.json {message}.*remove it"):
        distill(request_for)
    assert commands.names() == []


def test_a_step_that_fails_ends_the_run_and_is_not_complete(request_for: DistillRequest, commands: Commands) -> None:
    commands.codes["plan"] = 2
    with pytest.raises(UserError, match="The step plan returned 2"):
        distill(request_for)
    assert commands.names() == ["plan"]
    commands.codes.clear()
    distill(request_for)
    assert commands.names() == ["plan", "embed", "train", "evaluate", "merge"]


def test_what_is_asked_to_end_goes_no_further(
    request_for: DistillRequest, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.stops.add("train")
    assert not distill(request_for)
    assert "asked to end" in capsys.readouterr().out
    assert commands.names() == ["plan", "embed", "train"]


def test_without_a_store_and_without_masks(request_for: DistillRequest, commands: Commands) -> None:
    distill(request_for.model_copy(update={"online": True, "dataset": "images"}))
    assert commands.names() == ["train", "merge"]


def test_several_processes_are_torchruns(request_for: DistillRequest, commands: Commands) -> None:
    distill(request_for.model_copy(update={"processes": 2}))
    launched = [command for command in commands.seen if command[0] == "torchrun"]
    assert [command[5:7] for command in launched] == [("efficientsam3", "embed"), ("efficientsam3", "train")]
    assert all(command[3] == "2" for command in launched)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_go_on_to_the_command(number: int, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, time\n"
        "def end(*_):\n    open(sys.argv[1], 'w').close()\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "os.kill(os.getppid(), int(sys.argv[2]))\n"
        "time.sleep(30)\n"
    )
    with pytest.raises(StoppedError):
        run_command([sys.executable, "-c", script, str(tmp_path / "ended"), str(int(number))])
    assert (tmp_path / "ended").exists()


def test_a_command_that_fails_gives_its_code() -> None:
    assert run_command([sys.executable, "-c", "raise SystemExit(3)"]) == 3
