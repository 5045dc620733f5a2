"""OUTPUT before a training: what it takes over, and what it sets aside. See also tests/faults/rows/train.py."""

import json
from pathlib import Path
from typing import Any

import pytest

from efficientsam3.runtime.errors import UserError
from efficientsam3.train.folder import find_earlier, take_over

EPOCHS_2 = {"epoch": 1, "step": 6, "finished": True}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """After two epochs and one step."""
    for name in ("ckpt_epoch_0.pth", "ckpt_epoch_1.pth", "ckpt_step_7.pth", "best.json", "config.json", "notes.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "events.out.tfevents.1").touch()
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"epoch": n, "step": 3 * n}) + "\n" for n in range(2)))
    return tmp_path


def begin(output: Path, resumed: dict[str, Any] | None, given: Path | None = None) -> list[float]:
    earlier = find_earlier(output, resumed, given)
    take_over(output, earlier)
    return [line["epoch"] for line in earlier.lines]


def aside(output: Path, number: int = 1) -> set[str]:
    return {path.name for path in (output / f"replaced-{number}").iterdir()}


def test_a_run_that_goes_on_sets_nothing_aside(output: Path) -> None:
    assert begin(output, EPOCHS_2) == [0, 1]
    assert begin(output, EPOCHS_2 | {"finished": False}) == [0]
    assert not (output / "replaced-1").exists()


def test_a_run_that_begins_anew_sets_all_of_the_earlier_one_aside_and_nothing_else(output: Path) -> None:
    assert begin(output, None) == []
    everything = {"ckpt_epoch_0.pth", "ckpt_epoch_1.pth", "ckpt_step_7.pth", "best.json", "config.json"}
    assert aside(output) == everything | {"metrics.jsonl", "events.out.tfevents.1"}
    assert {path.name for path in output.iterdir()} == {"notes.txt", "replaced-1"}
    assert begin(output, None) == []
    assert not (output / "replaced-2").exists()
    (output / "ckpt_epoch_0.pth").touch()
    begin(output, None)
    assert aside(output, 2) == {"ckpt_epoch_0.pth"}


def test_going_back_sets_aside_what_lies_beyond(output: Path) -> None:
    given = output / "ckpt_epoch_0.pth"
    assert begin(output, {"epoch": 0, "step": 3, "finished": True}, given) == [0]
    assert aside(output) == {"ckpt_epoch_1.pth", "ckpt_step_7.pth", "best.json", "metrics.jsonl"}
    assert given.exists()
    assert (output / "metrics.jsonl").exists()  # a copy of which is set aside


def test_a_checkpoint_of_another_folder_goes_on_with_none_of_this_one(output: Path, tmp_path: Path) -> None:
    assert begin(output, EPOCHS_2, tmp_path / "other" / "ckpt_epoch_1.pth") == []
    assert "ckpt_epoch_1.pth" in aside(output)


def test_the_last_checkpoint_moves_last(output: Path) -> None:
    """So that a run that is killed meanwhile leaves a training that can be continued, or none."""
    moved = [path.name for path in find_earlier(output, None, None).replaced if path.suffix == ".pth"]
    assert moved == ["ckpt_step_7.pth", "ckpt_epoch_0.pth", "ckpt_epoch_1.pth"]


def test_damaged_lines_are_left_out_and_kept(output: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics = output / "metrics.jsonl"
    metrics.write_bytes(b"\xff\n" + metrics.read_bytes() + b'{"epoch": 2')
    assert begin(output, EPOCHS_2) == [0, 1]
    assert (output / "replaced-1" / "metrics.jsonl").read_bytes() == metrics.read_bytes()
    assert "line 1 is not JSON" in caplog.text
    assert "2 lines are left out" in caplog.text


def test_checkpoints_beyond_the_figures_are_of_another_training(output: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint of epoch 2, and metrics\.jsonl ends at epoch 1"):
        find_earlier(output, {"epoch": 2, "step": 9, "finished": True}, None)
    find_earlier(output, {"epoch": 2, "step": 9, "finished": True}, output / "ckpt_epoch_2.pth")


def test_only_our_temporary_files_are_removed(output: Path) -> None:
    ours = [".ckpt_epoch_2.pth.a1b2c3_4.tmp", ".metrics.jsonl.abcdefgh.tmp", ".config.json.abcdefgh.tmp"]
    theirs = [".notes.txt.abcdefgh.tmp", ".ckpt_epoch_2.pth.tmp", "ckpt_epoch_2.pth.abcdefgh.tmp"]
    for name in ours + theirs:
        (output / name).touch()
    begin(output, EPOCHS_2)
    assert not any((output / name).exists() for name in ours)
    assert all((output / name).exists() for name in theirs)
