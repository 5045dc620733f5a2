"""What a step does besides learning: leave out what is not finite, take batches one by one, compile, count."""

import json
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.efficientvit_mit import LiteMLA
from torch import nn

from efficientsam3.checkpoints.training import checkpoint_path, load_training_checkpoint
from efficientsam3.config.schema import TrainConfig
from efficientsam3.models.student import Student
from efficientsam3.runtime.distributed import Process
from efficientsam3.train.batches import TrainBatch
from efficientsam3.train.loop import Trainer
from efficientsam3.train.objective import FeatureObjective, Losses
from efficientsam3.train.optimizer import apply_if_finite, build_optimizer
from efficientsam3.train.plan import plan_training
from efficientsam3.train.run import train
from efficientsam3.train.targets import StoredTargets

MakeTraining = Callable[..., TrainConfig]


def metrics(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_a_step_without_a_finite_gradient_changes_nothing() -> None:
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, 0.1, 0.5)
    for finite in (True, False):
        before = [value.clone() for value in _state(model, optimizer)]
        model(torch.ones(1, 3)).sum().backward()
        if not finite:
            assert model.weight.grad is not None
            model.weight.grad[0, 0] = torch.nan
        apply_if_finite(optimizer, torch.tensor(not finite))
        optimizer.zero_grad()
        after = _state(model, optimizer)
        assert all(map(torch.equal, before, after)) is (not finite)


def _state(model: nn.Module, optimizer: torch.optim.AdamW) -> list[torch.Tensor]:
    return [*model.parameters(), *(value for state in optimizer.state.values() for value in state.values())]


def test_a_loss_that_is_not_finite_is_counted_and_kept_out_of_the_averages(
    make_training: MakeTraining, one_process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, calls = Trainer._loss, iter(range(100))

    def sometimes_nan(trainer: Trainer, *arguments: Any) -> Losses:
        losses = compute(trainer, *arguments)
        return losses | {"loss": losses["loss"] * torch.nan} if next(calls) == 1 else losses

    monkeypatch.setattr(Trainer, "_loss", sometimes_nan)
    config = make_training("TRAIN.EPOCHS", "2")
    train(config, one_process)
    lines = metrics(config.output_dir)
    assert [line["train/skipped_steps"] for line in lines] == [1, 0]
    assert all(line["train/loss"] > 0 for line in lines)
    content = load_training_checkpoint(checkpoint_path(config.output_dir, 0))
    assert all(value.isfinite().all() for value in content["model"].values())
    assert content["step"] == 3


def test_batch_norms_keep_nothing_of_a_step_that_is_left_out(
    make_training: MakeTraining, one_process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = Student.forward, iter(range(100))

    def overflowing(student: Student, pixel_values: torch.Tensor) -> torch.Tensor:
        return forward(student, pixel_values * (torch.inf if student.training and next(calls) == 1 else 1.0))

    monkeypatch.setattr(Student, "forward", overflowing)
    config = make_training("TRAIN.EPOCHS", "1", "TRAIN.EMA", "0.9")
    train(config, one_process)
    content = load_training_checkpoint(checkpoint_path(config.output_dir, 0))
    assert content["skipped"] == 1
    for part in ("model", "ema"):
        assert all(value.isfinite().all() for value in content[part].values())


def test_float16_trains_with_scaled_gradients(
    make_training: MakeTraining, one_process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU without bfloat16; where the scale is too large, the scaler leaves the step out and halves it."""
    plain = make_training("TAG", "plain")
    train(plain, one_process)
    monkeypatch.setattr("efficientsam3.train.build.autocast_dtype", lambda device: torch.float16)
    config = make_training("TAG", "half")
    train(config, one_process)
    content = load_training_checkpoint(checkpoint_path(config.output_dir, 2))
    assert content["scaler"]["scale"] == 65536.0 * 0.5 ** sum(
        line["train/skipped_steps"] for line in metrics(config.output_dir)
    )
    assert metrics(config.output_dir)[-1]["val/loss"] == pytest.approx(
        metrics(plain.output_dir)[-1]["val/loss"], rel=0.05
    )


def test_a_step_of_several_batches_takes_one_after_the_other(
    make_training: MakeTraining, one_process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them at once would lie on the device, and be waited for."""
    compute, move, events = Trainer._loss, TrainBatch.to, list[str]()

    def spy_loss(trainer: Trainer, *arguments: Any) -> Losses:
        events.append("compute")
        return compute(trainer, *arguments)

    def spy_move(batch: TrainBatch, device: torch.device) -> TrainBatch:
        events.append("move")
        return move(batch, device)

    monkeypatch.setattr(Trainer, "_loss", spy_loss)
    monkeypatch.setattr(TrainBatch, "to", spy_move)
    train(make_training("TRAIN.EPOCHS", "1", "TRAIN.ACCUMULATION_STEPS", "3"), one_process)
    assert events == ["move", "compute"] * 5  # three of training, two of validation


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_losses_see_both_embeddings_in_one_layout(
    make_training: MakeTraining, one_process: Process, monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format
) -> None:
    """The student's output is channels_last on CUDA; what a store or teacher gives is not."""
    forward, compute = Student.forward, FeatureObjective.__call__
    decode, seen = StoredTargets.__call__, list[tuple[torch.Tensor, torch.Tensor]]()
    decoded: list[torch.Tensor] = []

    def laid_out(student: Student, pixel_values: torch.Tensor) -> torch.Tensor:
        return forward(student, pixel_values).contiguous(memory_format=layout)

    def spy_decode(targets: StoredTargets, *arguments: Any) -> torch.Tensor:
        decoded.append(decode(targets, *arguments))
        return decoded[-1]

    def spy(objective: FeatureObjective, student: torch.Tensor, targets: torch.Tensor, *more: Any) -> Losses:
        seen.append((student, targets))
        return compute(objective, student, targets, *more)

    monkeypatch.setattr(Student, "forward", laid_out)
    monkeypatch.setattr(StoredTargets, "__call__", spy_decode)
    monkeypatch.setattr(FeatureObjective, "__call__", spy)
    train(make_training("TRAIN.EPOCHS", "1"), one_process)
    assert len(seen) == len(decoded) > 0
    for (student, targets), original in zip(seen, decoded, strict=True):
        assert student.is_contiguous(memory_format=layout)
        assert targets.stride() == student.stride()
        assert torch.equal(targets, original)
        assert (targets is original) is (layout is torch.contiguous_format)


def test_a_training_has_one_stream_to_copy_in(
    make_training: MakeTraining, one_process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.device] = []
    monkeypatch.setattr("efficientsam3.train.loop.copy_stream", made.append)
    train(make_training("TRAIN.EPOCHS", "2"), one_process)
    assert made == [one_process.device]


def test_the_first_epochs_show_the_student_images_of_half_the_size(
    make_training: MakeTraining, one_process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation and the epochs after them have the whole size; targets are as large as ever."""
    forward, seen = Student.forward, list[tuple[bool, int]]()

    def spy(student: Student, pixel_values: torch.Tensor) -> torch.Tensor:
        seen.append((student.training, pixel_values.shape[-1]))
        return forward(student, pixel_values)

    config = make_training("TRAIN.SMALL_EPOCHS", "2")
    plan_training(config)  # it computes shapes, once
    monkeypatch.setattr(Student, "forward", spy)
    train(config, one_process)
    expected = [(True, 112), (False, 224), (True, 112), (False, 224), (True, 224), (False, 224)]
    assert [key for key, _ in groupby(seen)] == expected


def test_the_average_starts_with_the_weights_of_the_first_step(
    make_training: MakeTraining, one_process: Process
) -> None:
    config = make_training("TRAIN.EMA", "0.999", "TRAIN.EPOCHS", "1", "TRAIN.ACCUMULATION_STEPS", "3")
    train(config, one_process)
    content = load_training_checkpoint(checkpoint_path(config.output_dir, 0))
    assert content["step"] == 1
    assert all(torch.equal(content["ema"][key], value) for key, value in content["model"].items())


def test_a_compiled_student_gives_the_same_checkpoint(
    make_training: MakeTraining, one_process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Student] = []

    def without_code_generation(student: Student) -> None:
        compiled.append(student)
        nn.Module.compile(student, backend="eager")

    monkeypatch.setattr(Student, "compile", without_code_generation)
    opts = ["TRAIN.EPOCHS", "1", "TRAIN.EMA", "0.9"]
    plain, faster = make_training(*opts, "TAG", "plain"), make_training(*opts, "TRAIN.COMPILE", "true", "TAG", "faster")
    for config in (plain, faster):
        train(config, one_process)
    assert len(compiled) == 1
    ours, theirs = (load_training_checkpoint(checkpoint_path(config.output_dir, 0)) for config in (faster, plain))
    assert ours["model"].keys() == theirs["model"].keys() == ours["ema"].keys()
    assert metrics(faster.output_dir)[0] == pytest.approx(metrics(plain.output_dir)[0], rel=1e-4)


def test_linear_attention_stays_in_float32_under_float16() -> None:
    """Its sums over all positions leave float16's range, which ends at 65504, long before its output does."""
    torch.manual_seed(0)
    attention = LiteMLA(16, 16, dim=16).eval()
    pixels = torch.randn(1, 16, 64, 64) * 20
    products = list[float]()
    compute = attention._attn

    def spy(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        products.append((k.float().transpose(-1, -2) @ v.float()).abs().max().item())
        return compute(q, k, v)

    attention._attn = spy
    with torch.no_grad():
        expected = attention(pixels)
        with torch.autocast("cpu", torch.float16):
            found = attention(pixels)
    assert max(products) > torch.finfo(torch.float16).max
    assert found.isfinite().all()
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2 * expected.abs().max().item())
