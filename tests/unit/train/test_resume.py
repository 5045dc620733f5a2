"""Trainings that are interrupted anywhere and resumed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from efficientsam3.checkpoints.training import (
    checkpoint_path,
    latest_checkpoint,
    load_training_checkpoint,
    save_training_checkpoint,
    step_checkpoint_path,
)
from efficientsam3.config.schema import TrainConfig
from efficientsam3.models.student import Student
from efficientsam3.runtime.distributed import Process
from efficientsam3.runtime.errors import UserError
from efficientsam3.train.plan import plan_training
from efficientsam3.train.run import Observers, check_training, train
from unit.train.record_training import StopAfter

MakeTraining = Callable[..., TrainConfig]


TRAINED_NECK = ("DISTILL.MASKS.DECODER", "SAM3", "DISTILL.MASKS.NECK", "0.5", "DISTILL.MASKS.LEVELS", "1")


def metrics(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def assert_same(left: Path, right: Path) -> None:
    """Figures of every epoch, and everything in the last checkpoint but paths."""
    assert metrics(left) == metrics(right)
    ours, theirs = (load_training_checkpoint(latest_checkpoint(path)) for path in (left, right))
    for part in ("model", "ema"):
        for key, value in theirs[part].items():
            assert torch.equal(ours[part][key], value), (part, key)
        for key, value in theirs.get("necks", {part: {}})[part].items():
            assert torch.equal(ours["necks"][part][key], value), (part, key)
    moments = [content["optimizer"]["state"] for content in (ours, theirs)]
    for index, state in moments[1].items():
        for name, value in state.items():
            assert torch.equal(moments[0][index][name], value), (index, name)
    assert torch.equal(ours["processes"][0]["random"]["torch"], theirs["processes"][0]["random"]["torch"])


@pytest.fixture
def dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Students that draw random numbers in every step."""
    forward = Student.forward

    def with_dropout(student: Student, pixel_values: torch.Tensor) -> torch.Tensor:
        return forward(student, nn.functional.dropout(pixel_values, 0.2, student.training))

    monkeypatch.setattr(Student, "forward", with_dropout)


@pytest.mark.usefixtures("dropout")
@pytest.mark.parametrize(
    ("opts", "stops"),
    [
        # Three steps and two batches of validation an epoch: within an epoch, within validation, at its end.
        ((), (2, 2, 3, 3)),
        # Two steps an epoch, the second of one batch; with the decoder in the loop and its neck trained.
        (("TRAIN.ACCUMULATION_STEPS", "2", "DISTILL.READ_WINDOW", "3", *TRAINED_NECK), (1, 2)),
    ],
)
def test_an_interrupted_run_gives_the_same_numbers_digit_for_digit(
    make_training: MakeTraining,
    one_process: Process,
    tiny_sam3_path: Path,
    opts: tuple[str, ...],
    stops: tuple[int, ...],
) -> None:
    opts = tuple(str(tiny_sam3_path) if word == "SAM3" else word for word in opts)
    opts = (*opts, "TRAIN.EMA", "0.9", "TRAIN.EPOCHS", "2")
    undisturbed = make_training(*opts, "TAG", "undisturbed")
    assert not train(undisturbed, one_process).stopped
    disturbed = make_training(*opts, "TAG", "disturbed")
    for times in stops:
        summary = train(disturbed, one_process, StopAfter(times))
        assert summary.stopped
        assert summary.checkpoint.exists()
    assert not train(disturbed, one_process).stopped
    assert_same(disturbed.output_dir, undisturbed.output_dir)
    if "DISTILL.MASKS.NECK" in opts:
        necks = load_training_checkpoint(latest_checkpoint(disturbed.output_dir))["necks"]
        assert all(not torch.equal(value, necks["ema"][key]) for key, value in necks["model"].items())


def test_checkpoints_within_an_epoch_and_of_old_epochs_are_cleared_away_but_the_best_stays(
    make_training: MakeTraining, one_process: Process
) -> None:
    values = iter([0.1, 0.9, 0.2, 0.3])
    probe = Observers(probe=lambda student, necks: {"box_miou": next(values), "other": 0.0})
    opts = ["TRAIN.SAVE_STEPS", "1", "TRAIN.KEEP_EPOCHS", "1", "TRAIN.EPOCHS", "4", "SAVE_FREQ", "1"]
    config = make_training(*opts, "DATA.BATCH_SIZE", "1")
    train(config, one_process, StopAfter(6), probe)
    names = {path.name for path in config.output_dir.glob("ckpt_*")}
    assert names == {"ckpt_step_5.pth", "ckpt_step_6.pth"}
    train(config, one_process, observers=probe)
    names = {path.name for path in config.output_dir.glob("ckpt_*")}
    assert names == {"ckpt_epoch_1.pth", "ckpt_epoch_3.pth"}
    best = json.loads((config.output_dir / "best.json").read_text())
    assert best == {"path": "ckpt_epoch_1.pth", "epoch": 1, "step": 12, "metric": "probe/box_miou", "value": 0.9}
    assert [line["probe/box_miou"] for line in metrics(config.output_dir)] == [0.1, 0.9, 0.2, 0.3]


def test_without_a_probe_the_validation_loss_decides(make_training: MakeTraining, one_process: Process) -> None:
    config = make_training()
    train(config, one_process)
    losses = [line["val/loss"] for line in metrics(config.output_dir)]
    best = json.loads((config.output_dir / "best.json").read_text())
    assert (best["metric"], best["value"]) == ("val/loss", min(losses))
    assert best["path"] == f"ckpt_epoch_{losses.index(min(losses))}.pth"


def test_the_highest_step_counts_and_damaged_checkpoints_are_passed_over(
    make_training: MakeTraining, one_process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_training("TRAIN.EPOCHS", "2")
    train(config, one_process)
    output = config.output_dir
    first, second = checkpoint_path(output, 0), checkpoint_path(output, 1)
    content = load_training_checkpoint(first)
    torch.save({**content, "step": 5, "epoch": 1, "position": 2, "finished": False}, step_checkpoint_path(output, 5))
    torch.save({**content, "step": 4, "epoch": 1, "position": 2, "finished": False}, step_checkpoint_path(output, 4))
    assert latest_checkpoint(output) == second  # of step 6
    second.write_bytes(second.read_bytes()[:1000])
    first.touch()
    assert latest_checkpoint(output) == step_checkpoint_path(output, 5)
    assert "ckpt_epoch_1.pth is broken" in caplog.text
    for step in (4, 5):
        step_checkpoint_path(output, step).write_bytes(b"")
    assert latest_checkpoint(output) == first


@pytest.mark.parametrize(
    ("opts", "named"),
    [
        (["TRAIN.EPOCHS", "2"], r"TRAIN\.EPOCHS: 1 -> 2"),
        (["MODEL.PRETRAINED", str(Path(__file__))], r"MODEL\.PRETRAINED: False -> .*test_resume\.py"),
        (["TRAIN.BASE_LR", "0.5", "SEED", "7"], r"SEED: 0 -> 7; TRAIN\.BASE_LR: 0\.001 -> 0\.5"),
        (["DATA.BATCH_SIZE", "1"], "images a step: 2 -> 1"),
        (["DISTILL.MASKS.DECODER", "SAM3"], r"DISTILL\.MASKS\.BCE: None -> 5\.0"),
        (["DATA.NUM_SAMPLES", "4"], r"DATA\.NUM_SAMPLES: 0 -> 4; training images: 6 -> 4"),
        (["DATA.BATCH_SIZE", "1", "TRAIN.ACCUMULATION_STEPS", "2", "PRINT_FREQ", "3", "TRAIN.SAVE_STEPS", "9"], None),
    ],
)
def test_a_changed_configuration_is_named_and_refused(
    make_training: MakeTraining, one_process: Process, opts: list[str], named: str | None, tiny_sam3_path: Path
) -> None:
    train(make_training("TRAIN.EPOCHS", "1"), one_process, StopAfter(1))
    opts = [str(tiny_sam3_path) if word == "SAM3" else word for word in opts]
    changed = make_training("TRAIN.EPOCHS", "1", *opts)
    if named is None:
        check_training(plan_training(changed))
        return
    with pytest.raises(UserError, match=named):
        check_training(plan_training(changed))
    check_training(plan_training(changed), allow_config_change=True)
    train(changed, one_process, allow_config_change=True)
    check_training(plan_training(changed))


@pytest.mark.parametrize("change", [False, True])
def test_a_run_begun_with_the_former_defaults_goes_on_with_the_published_configuration(
    make_training: MakeTraining, one_process: Process, change: bool
) -> None:
    """It is refused with the present ones, and the file that the sentence names resumes it."""
    path = train(make_training(cfg="published/es_ev_s.yaml"), one_process, StopAfter(1)).checkpoint
    before = set(path.parent.iterdir())
    with pytest.raises(UserError) as refused:
        train(make_training(cfg="es_ev_s.yaml"), one_process, allow_config_change=change)
    assert str(refused.value) == (
        f"Checkpoint {path} was made with another configuration (DISTILL.NORMALIZE: none -> channel; "
        "TRAIN.LR_SCALING: sqrt -> steps): set that back with --cfg stage1/configs/published/es_ev_s.yaml or --opts "
        "DISTILL.NORMALIZE none TRAIN.LR_SCALING sqrt, or give the checkpoint as MODEL.PRETRAINED in another OUTPUT."
    )
    assert set(path.parent.iterdir()) == before
    for way in (make_training(cfg="published/es_ev_s.yaml"), make_training(*_FORMER)):
        check_training(plan_training(way))
    # The rate alone may change, where one insists.
    rate = make_training("DISTILL.NORMALIZE", "none", cfg="es_ev_s.yaml")
    with pytest.raises(UserError, match=r"--opts TRAIN\.LR_SCALING sqrt, or give another OUTPUT, or continue anyway"):
        check_training(plan_training(rate))
    check_training(plan_training(rate), allow_config_change=True)


_FORMER = ("DISTILL.NORMALIZE", "none", "TRAIN.LR_SCALING", "sqrt")


def test_weights_to_start_from_are_needless_to_go_on(make_training: MakeTraining, one_process: Process) -> None:
    """A run that began from a file resumes on a machine without that file."""
    started = make_training()
    train(started, one_process, StopAfter(1))
    weights = started.output_dir.parent / "weights.pth"
    shutil.copy(latest_checkpoint(started.output_dir) or "", weights)
    begun = make_training("MODEL.PRETRAINED", str(weights), "TAG", "begun")
    train(begun, one_process, StopAfter(1))
    weights.unlink()
    check_training(plan_training(make_training("TAG", "begun")))


def test_the_average_of_the_weights_is_what_is_validated(make_training: MakeTraining, one_process: Process) -> None:
    with_average = make_training("TRAIN.EMA", "0.5", "TAG", "average")
    plain = make_training("TAG", "plain")
    train(with_average, one_process)
    train(plain, one_process)
    ours, theirs = metrics(with_average.output_dir), metrics(plain.output_dir)
    assert [line["train/loss"] for line in ours] == [line["train/loss"] for line in theirs]
    assert [line["val/loss"] for line in ours] != [line["val/loss"] for line in theirs]
    content = load_training_checkpoint(checkpoint_path(with_average.output_dir, 2))
    average, weights = content["ema"], content["model"]
    assert average.keys() == weights.keys()
    counts = [key for key in weights if key.endswith("num_batches_tracked")]
    assert all(torch.equal(average[key], weights[key]) for key in counts)
    means = [key for key in weights if key.endswith("running_mean")]
    assert not any(torch.equal(average[key], weights[key]) for key in means)


def test_a_checkpoint_of_a_gpu_continues_on_the_cpu(make_training: MakeTraining, one_process: Process) -> None:
    """On CUDA, parameters are channels_last, and the optimiser's moments with them."""
    config = make_training()
    train(config, one_process)
    expected = metrics(config.output_dir)[-1]
    content = load_training_checkpoint(_forget_last_epoch(config))
    for moments in content["optimizer"]["state"].values():
        for name, value in moments.items():
            if value.ndim == 4:
                moments[name] = value.contiguous(memory_format=torch.channels_last)
    save_training_checkpoint(checkpoint_path(config.output_dir, 1), content)
    train(config, one_process)
    assert metrics(config.output_dir)[-1] == expected


def test_a_training_goes_from_device_to_device_and_from_precision_to_precision(
    make_training: MakeTraining, one_process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a CPU has them, and CUDA: channels_last, in bfloat16, or in float16, which alone scales its gradients."""
    to, layout = Student.to, torch.contiguous_format
    autocast: torch.dtype | None = None
    monkeypatch.setattr(Student, "to", lambda student, *_, **__: to(student, memory_format=layout))
    monkeypatch.setattr("efficientsam3.train.build.autocast_dtype", lambda device: autocast)
    opts = ["TRAIN.EPOCHS", "1", "DATA.BATCH_SIZE", "1"]  # six steps
    undisturbed, config = make_training(*opts, "TAG", "undisturbed"), make_training(*opts)
    train(undisturbed, one_process)
    ways = [
        (torch.contiguous_format, None),
        (torch.channels_last, torch.float16),
        (torch.channels_last, torch.float16),
        (torch.contiguous_format, None),
        (torch.channels_last, torch.bfloat16),
        (torch.channels_last, torch.float16),
    ]
    known = {"scale": 128.0, "_growth_tracker": 5}  # a scale that no gradient is too large for
    scaled_before = False
    for number, (layout, autocast) in enumerate(ways):
        train(config, one_process, StopAfter(0 if number == 5 else 1))
        content = load_training_checkpoint(path := latest_checkpoint(config.output_dir))
        states, scaler = list(content["optimizer"]["state"].values()), content["scaler"]
        assert {value.dtype for state in states for value in state.values()} == {torch.float32}
        assert all(
            state["exp_avg"].is_contiguous(memory_format=layout) for state in states if state["exp_avg"].ndim == 4
        )
        assert bool(scaler) is (autocast is torch.float16)
        if scaler and scaled_before:
            assert scaler == scaler | known | {"_growth_tracker": 6}
        if scaler and number < 5:
            save_training_checkpoint(path, content | {"scaler": scaler | known})
        scaled_before = bool(scaler)
    assert content["step"] == len(ways)
    losses = [metrics(each.output_dir)[-1]["val/loss"] for each in (config, undisturbed)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def _forget_last_epoch(config: TrainConfig) -> Path:
    """Remove the last of three epochs' checkpoint; returns the one before."""
    checkpoint_path(config.output_dir, 2).unlink()
    return checkpoint_path(config.output_dir, 1)
