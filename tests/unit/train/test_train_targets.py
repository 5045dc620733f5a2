"""Training with standardised targets and with the other head: what comes out is as comparable and usable as ever."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from efficientsam3.checkpoints.standardisation import Standardisation
from efficientsam3.checkpoints.training import load_training_checkpoint
from efficientsam3.config.schema import TrainConfig
from efficientsam3.models.build import build_student
from efficientsam3.models.student import Student
from efficientsam3.models.student_files import read_student
from efficientsam3.runtime.distributed import Process
from efficientsam3.runtime.errors import UserError
from efficientsam3.store.gather import compute_statistics
from efficientsam3.store.shards import Shard
from efficientsam3.store.statistics import store_statistics
from efficientsam3.train import covariance
from efficientsam3.train.batches import with_records
from efficientsam3.train.objective import TERMS, FeatureObjective
from efficientsam3.train.plan import plan_training
from efficientsam3.train.run import Observers, train
from efficientsam3.train.targets import StoredTargets
from killed import cut_keys
from unit.train.record_training import StopAfter

MakeTraining = Callable[..., TrainConfig]
CHANNEL = ("DISTILL.NORMALIZE", "channel", "MODEL.HEAD", "fpn", "DATA.BATCH_SIZE", "3", "TRAIN.EPOCHS", "1")


def student_of(path: Path) -> Student:
    file = read_student(path)
    assert file.architecture is not None
    student = Student(file.architecture)
    student.load_state_dict(file.state)
    return student.eval()


def last_line(config: TrainConfig) -> dict[str, float]:
    line: dict[str, float] = json.loads((config.output_dir / "metrics.jsonl").read_text().splitlines()[-1])
    return line


def validate(student: nn.Module, config: TrainConfig) -> tuple[float, float, float]:
    """MSE, cosine distance and relative MSE of raw features over the val split, by hand."""
    plan = plan_training(config)
    images = plan.collate([plan.val[index] for index in range(len(plan.val))])
    [items] = with_records([images], plan.targets, torch.device("cpu"))
    preprocessing = plan.targets.manifest.preprocessing
    pixels = (items.pixels.float() / 255 - 0.5) / 0.5
    assert preprocessing.mean == (0.5, 0.5, 0.5)
    assert isinstance(plan.targets, StoredTargets)
    teacher = plan.targets(items, pixels)
    valid = torch.ones(len(teacher), 16, 16, dtype=torch.bool)
    with torch.no_grad():
        losses = FeatureObjective({"mse": 1.0, "cosine": 1.0})(student(pixels), teacher, valid, items.weights)
    variance = store_statistics(plan.targets.store.directory).variance.mean()
    return losses["mse"].item(), losses["cosine"].item(), losses["mse"].item() / float(variance)


@pytest.mark.parametrize(
    ("normalise", "ema"),
    [("none", "0"), ("none", "0.5"), ("channel", "0"), ("channel", "0.5"), ("phi-s", "0"), ("whiten", "0.5")],
)
def test_the_recorded_figures_are_of_raw_features_whatever_the_targets(
    normalise: str, ema: str, make_training: MakeTraining, one_process: Process
) -> None:
    config = make_training(*CHANNEL, "DISTILL.NORMALIZE", normalise, "TRAIN.EMA", ema)
    observed: list[tuple[float, float, float]] = []
    observers = Observers(probe=lambda student, necks: observed.append(validate(student, config)) or {"x": 0.0})
    summary = train(config, one_process, observers=observers)
    line = last_line(config)
    recorded = tuple(line[f"val/{name}"] for name in ("mse", "cosine", "relative_mse"))
    by_hand = validate(student_of(summary.checkpoint), config)
    assert recorded == pytest.approx(by_hand, rel=1e-4)
    assert observed == [pytest.approx(by_hand, rel=1e-4)]
    assert ("normalisation" in load_training_checkpoint(summary.checkpoint)) == (normalise != "none")
    if normalise != "none":
        # What is minimised is another figure: standardised targets have unit variance.
        assert line["val/loss"] != pytest.approx(line["val/mse"] + line["val/cosine"], rel=0.05)


def test_a_resumed_run_keeps_the_statistics_it_began_with(
    make_training: MakeTraining, one_process: Process, store_path: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(store_path, store)
    first = train(make_training(*CHANNEL, store=store), one_process)
    began = load_training_checkpoint(first.checkpoint)["normalisation"]
    # The store has grown since: here, its statistics are those of fewer images, and made again of all.
    shard = Shard(store / "embeddings", 0)
    cut_keys(shard, len(shard.read_keys()) - 1)
    shard.statistics_path.unlink()
    compute_statistics(store / "embeddings", [])
    config = make_training(*CHANNEL, "TRAIN.EPOCHS", "2", store=store)
    resumed = train(config, one_process, allow_config_change=True)
    again = load_training_checkpoint(resumed.checkpoint)["normalisation"]
    assert resumed.checkpoint != first.checkpoint
    assert all(torch.equal(again[key], began[key]) for key in ("mean", "std"))
    now = store_statistics(store / "embeddings")
    assert not torch.equal(Standardisation.of(now.mean, now.variance).mean, began["mean"])


def test_a_resumed_run_keeps_the_rotation_it_began_with(
    make_training: MakeTraining, one_process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotated = (*CHANNEL, "DISTILL.NORMALIZE", "phi-s", "TRAIN.EPOCHS", "2")
    undisturbed = train(make_training(*rotated, "TAG", "undisturbed"), one_process)
    train(make_training(*rotated), one_process, StopAfter(3))
    monkeypatch.setattr("efficientsam3.train.build.measure_covariance", None)
    assert train(make_training(*rotated), one_process).metrics == undisturbed.metrics
    for other in ("whiten", "channel", "none"):
        with pytest.raises(UserError, match=rf"\(DISTILL\.NORMALIZE: phi-s -> {other}\).*PRETRAINED"):
            train(make_training(*rotated, "DISTILL.NORMALIZE", other), one_process, allow_config_change=True)


def test_the_covariance_is_of_the_cells_that_show_the_training_images(
    make_training: MakeTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    def upper_rows(sizes: torch.Tensor, image_size: int, grid_size: int) -> torch.Tensor:
        assert sizes.tolist() == [[224, 224]] * len(sizes)
        return torch.arange(grid_size)[None, :, None].expand(len(sizes), grid_size, grid_size) < 5

    monkeypatch.setattr(covariance, "build_valid_mask", upper_rows)
    monkeypatch.setattr(covariance, "MEASURED_IMAGES", 4)
    plan = plan_training(make_training("DISTILL.NORMALIZE", "whiten"))
    mean, found = covariance.measure_covariance(plan)
    assert isinstance(plan.targets, StoredTargets)
    store = plan.targets.store
    images = [store.decode(store.read(int(row))[None])[1][0, :, :5] for row in plan.train.rows[:4]]
    cells = torch.cat([each.flatten(1) for each in images], dim=1).double()
    torch.testing.assert_close(mean, cells.mean(dim=1))
    torch.testing.assert_close(found, torch.cov(cells, correction=0))


def test_rotations_of_computed_targets_are_refused(make_training: MakeTraining) -> None:
    with pytest.raises(UserError, match=r"DISTILL\.NORMALIZE whiten needs the embeddings of a store"):
        make_training("DISTILL.NORMALIZE", "whiten", "DISTILL.ONLINE", "true", online=True)


@pytest.mark.parametrize("change", [False, True])
def test_other_targets_are_no_continuation(change: bool, make_training: MakeTraining, one_process: Process) -> None:
    train(make_training(*CHANNEL), one_process)
    with pytest.raises(UserError, match=r"\(DISTILL\.NORMALIZE: channel -> none\): set that back, or .*PRETRAINED"):
        train(make_training(*CHANNEL, "DISTILL.NORMALIZE", "none"), one_process, allow_config_change=change)


def test_a_store_without_statistics_is_refused_with_the_command(
    make_training: MakeTraining, one_process: Process, store_path: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(store_path, store)
    Shard(store / "embeddings", 0).statistics_path.unlink()
    with pytest.raises(UserError, match=r"efficientsam3 store statistics"):
        plan_training(make_training(*CHANNEL, store=store))
    # Without standardised targets it trains, and records what it can.
    config = make_training(*CHANNEL, "DISTILL.NORMALIZE", "none", store=store)
    train(config, one_process)
    assert "val/relative_mse" not in last_line(config)


def test_a_pretrained_head_gives_the_targets_of_the_new_training(
    make_training: MakeTraining, one_process: Process
) -> None:
    """From raw features to standardised ones, and between statistics."""
    summary = train(make_training(*CHANNEL), one_process)
    raw = student_of(summary.checkpoint)
    other = Standardisation(torch.linspace(-1, 1, 64), torch.linspace(0.5, 2, 64))
    started = build_student(raw.architecture, summary.checkpoint, other).eval()
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(other.restore(started(pixels)), raw(pixels), rtol=1e-4, atol=1e-5)
        plain = build_student(replace(raw.architecture), summary.checkpoint).eval()
        torch.testing.assert_close(plain(pixels), raw(pixels))


def huber(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    per_cell = nn.functional.smooth_l1_loss(student.float(), teacher.float(), reduction="none").mean(dim=1)
    return (per_cell * valid).sum(dim=(1, 2)) / valid.sum(dim=(1, 2))


def test_a_further_loss_is_one_entry_and_is_minimised_summed_saved_and_recorded(
    make_training: MakeTraining, one_process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TERMS, "huber", huber)
    opts = ["DISTILL.TERMS", "{huber: 0.5}", "DISTILL.NORMALIZE", "none", "TRAIN.EPOCHS", "1"]
    undisturbed = train(make_training(*opts, "TAG", "undisturbed"), one_process)
    config = make_training(*opts)
    stopped = train(config, one_process, StopAfter(2))
    sums = load_training_checkpoint(stopped.checkpoint)["processes"][0]["sums"]
    assert set(sums) == {"loss", "mse", "cosine", "huber", "count"}
    summary = train(config, one_process)
    assert summary.metrics == undisturbed.metrics
    for split in ("train", "val"):
        loss, mse, cosine, term = (summary.metrics[f"{split}/{name}"] for name in ("loss", "mse", "cosine", "huber"))
        assert term > 0
        assert loss == pytest.approx(mse + cosine + 0.5 * term)


def test_a_loss_that_does_not_exist_is_refused_before_training(make_training: MakeTraining) -> None:
    with pytest.raises(UserError, match="'huber' is not a loss term: use attention, cosine, "):
        plan_training(make_training("DISTILL.TERMS", "{huber: 0.5}"))
