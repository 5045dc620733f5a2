"""The teacher in the training loop."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efficientsam3.checkpoints.training import latest_checkpoint, load_training_checkpoint, save_training_checkpoint
from efficientsam3.config.schema import ExportConfig, TrainConfig
from efficientsam3.data.layouts import list_images
from efficientsam3.embed.plan import plan_embedding
from efficientsam3.embed.run import embed_dataset
from efficientsam3.evaluate.report.features import feature_pairs
from efficientsam3.models.student import Student
from efficientsam3.models.teacher import Sam3Teacher
from efficientsam3.runtime.distributed import Process
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.signals import StopRequest
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.train import targets as online
from efficientsam3.train.plan import plan_training
from efficientsam3.train.run import check_training, train
from unit.train.record_training import StopAfter
from unit.train.test_processes import on_two

MakeTraining = Callable[..., TrainConfig]
MakeExport = Callable[..., ExportConfig]


# Standardised by the store, which has the validation images as well, targets would differ; a small rate lets roundings
# stay small.
RAW = ("DISTILL.NORMALIZE", "none", "TRAIN.LR_SCALING", "sqrt")


def metrics(config: TrainConfig) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (config.output_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.endswith("relative_mse")} for line in lines]


def assert_close(left: TrainConfig, right: TrainConfig, tolerance: float) -> None:
    assert len(metrics(left)) == 3
    for ours, theirs in zip(metrics(left), metrics(right), strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance)


@pytest.fixture
def teachers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The teachers that were loaded, with the number of batches that each has embedded."""
    found: list[Any] = []
    load, call = online.load_teacher, Sam3Teacher.__call__

    def spy_load(*arguments: Any) -> Any:
        found.append(load(*arguments))
        found[-1].calls = 0
        return found[-1]

    def spy_call(teacher: Any, pixel_values: torch.Tensor) -> torch.Tensor:
        teacher.calls += 1
        return call(teacher, pixel_values)

    monkeypatch.setattr(online, "load_teacher", spy_load)
    monkeypatch.setattr(Sam3Teacher, "__call__", spy_call)
    return found


@pytest.fixture
def make_online(make_training: MakeTraining, tiny_sam3_path: Path) -> MakeTraining:
    """Builds configurations of trainings without a store."""

    def make(*opts: str, data: Path | None = None) -> TrainConfig:
        ours = ["DISTILL.ONLINE", "true", "TEACHER.RESUME", str(tiny_sam3_path), "TAG", "online"]
        return make_training(*ours, *opts, online=True, data=data)

    return make


def test_without_a_store_the_losses_are_the_same_but_for_its_rounding(
    make_online: MakeTraining, make_training: MakeTraining, one_process: Process, teachers: list[Any]
) -> None:
    """float16 keeps 11 bits, an error of 5e-4 at most in each value."""
    ours, theirs = make_online(*RAW), make_training(*RAW)
    for config in (ours, theirs):
        train(config, one_process)
    assert_close(ours, theirs, 1e-3)
    [teacher] = teachers
    assert teacher.calls == 3 * (3 + 2)  # each batch once: 6 training and 3 validation images in batches of 2
    assert not teacher._trunk.training
    assert not any(parameter.requires_grad for parameter in teacher._trunk.parameters())
    assert all(parameter.grad is None for parameter in teacher._trunk.parameters())


@pytest.mark.parametrize("workers", ["0", "1"])
def test_with_a_cache_it_is_as_from_a_store_and_the_teacher_works_for_one_epoch(
    make_online: MakeTraining,
    make_training: MakeTraining,
    one_process: Process,
    store_path: Path,
    teachers: list[Any],
    tmp_path: Path,
    workers: str,
) -> None:
    ours = make_online("DISTILL.ONLINE_CACHE", str(tmp_path / "cache"), "DATA.NUM_WORKERS", workers, *RAW)
    theirs = make_training(*RAW)
    for config in (ours, theirs):
        train(config, one_process)
    assert_close(ours, theirs, 1e-5)
    assert teachers[0].calls == 3 + 2
    cache, store = (EmbeddingStore(path / "embeddings") for path in (tmp_path / "cache", store_path))
    assert cache.manifest == store.manifest
    np.testing.assert_array_equal(cache.ids, store.ids)
    for row in range(len(store)):
        seeds, embeddings = cache.decode(cache.read(row)[None])
        expected_seeds, expected = store.decode(store.read(row)[None])
        assert torch.equal(seeds, expected_seeds)
        torch.testing.assert_close(embeddings, expected, rtol=2e-3, atol=2e-3)


def test_an_interrupted_epoch_leaves_what_was_computed_in_the_cache(
    make_online: MakeTraining, one_process: Process, teachers: list[Any], tmp_path: Path
) -> None:
    stop = StopRequest()
    stop.requested = True
    config = make_online("DISTILL.ONLINE_CACHE", str(tmp_path / "cache"))
    assert train(config, one_process, stop).stopped
    assert len(EmbeddingStore(tmp_path / "cache" / "embeddings")) == 2
    train(config, one_process)
    assert len(EmbeddingStore(tmp_path / "cache" / "embeddings")) == 9
    # The first epoch's other two batches, and validation's; its first batch is read in the second epoch.
    assert teachers[1].calls == 2 + 2


def test_teacher_and_student_see_the_same_augmented_pictures(
    make_online: MakeTraining,
    make_training: MakeTraining,
    make_export: MakeExport,
    one_process: Process,
    tmp_path: Path,
) -> None:
    embed_dataset(plan_embedding(make_export("DATA.AUGMENT.HFLIP", "0.5")), one_process)
    ours = make_online("DISTILL.AUGMENT.HFLIP", "0.5", *RAW)
    theirs = make_training(*RAW, store=tmp_path / "teacher")
    for config in (ours, theirs):
        train(config, one_process)
    assert_close(ours, theirs, 1e-3)


@pytest.mark.parametrize(
    ("opts", "named"),
    [
        (["TEACHER.RESUME", "/absent.pt"], r"/absent\.pt does not exist"),
        (["DATA.IMG_SIZE", "1008"], "does not fit the teacher"),
        (["DISTILL.READ_WINDOW", "2"], r"READ_WINDOW 2 has no effect without DISTILL\.ONLINE false"),
        (["DISTILL.ONLINE", "false", "DISTILL.ONLINE_CACHE", "x"], r"TEACHER has no effect without DISTILL\.ONLINE"),
    ],
)
def test_what_does_not_fit_is_refused(make_online: MakeTraining, opts: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        plan_training(make_online(*opts))


def test_a_cache_of_other_settings_is_refused(make_online: MakeTraining, one_process: Process, tmp_path: Path) -> None:
    config = make_online("DISTILL.ONLINE_CACHE", str(tmp_path / "cache"), "TRAIN.EPOCHS", "1")
    train(config, one_process)
    other = make_online("DISTILL.ONLINE_CACHE", str(tmp_path / "cache"), "SEED", "3", "TAG", "other")
    with pytest.raises(UserError, match="was begun with other settings"):
        train(other, one_process)


CHANNEL = ("DISTILL.NORMALIZE", "channel", "TRAIN.EPOCHS", "1")


def test_standardised_targets_are_measured_once_and_alike_on_any_number_of_processes(
    make_online: MakeTraining,
    one_process: Process,
    store_path: Path,
    photographs_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_online(*CHANNEL, "DATA.BATCH_SIZE", "1", "TAG", "one")
    first = load_training_checkpoint(train(config, one_process, StopAfter(1)).checkpoint)
    store = EmbeddingStore(store_path / "embeddings")
    rows = store.rows(list_images(photographs_path, "train").ids)
    embeddings = store.decode(torch.stack([store.read(int(row)) for row in rows]))[1].transpose(0, 1).flatten(1)
    torch.testing.assert_close(first["normalisation"]["mean"], embeddings.mean(dim=1), rtol=1e-3, atol=1e-3)
    assert first["variance"] == pytest.approx(embeddings.var(dim=1, correction=0).mean().item(), rel=1e-3)

    two = make_online(*CHANNEL, "DATA.BATCH_SIZE", "1", "TAG", "two")
    on_two(two, tmp_path, stop_after=1)
    second = load_training_checkpoint(latest_checkpoint(two.output_dir))
    for key in ("mean", "std"):
        assert torch.equal(second["normalisation"][key], first["normalisation"][key])
    assert (second["variance"], second["statistics_images"]) == (first["variance"], first["statistics_images"])

    def fail(*arguments: Any) -> None:
        raise AssertionError("the statistics are those of the checkpoint")

    monkeypatch.setattr(online.ComputedTargets, "measure_moments", fail)
    for interrupted in (config, two):  # on one process, however many began it
        summary = train(interrupted, one_process, allow_config_change=True)
        content = load_training_checkpoint(summary.checkpoint)
        assert all(torch.equal(content["normalisation"][key], first["normalisation"][key]) for key in ("mean", "std"))
        assert content["statistics_images"] == first["statistics_images"]
        assert summary.metrics["val/relative_mse"] == pytest.approx(summary.metrics["val/mse"] / first["variance"])


def test_statistics_of_other_images_are_named_as_a_change(make_online: MakeTraining, one_process: Process) -> None:
    config = make_online(*CHANNEL)
    path = train(config, one_process, StopAfter(1)).checkpoint
    save_training_checkpoint(path, {**load_training_checkpoint(path), "statistics_images": "0" * 64})
    with pytest.raises(UserError, match="images that the statistics are of: 0000"):
        check_training(plan_training(config))


def test_features_are_drawn_with_the_teacher_in_the_loop(
    make_online: MakeTraining, one_process: Process, store_path: Path
) -> None:
    plan = plan_training(make_online())
    student = Student(plan.architecture).eval()
    with plan.targets.open(one_process):
        first, *_ = feature_pairs(student, plan.targets, plan.val, 2)
    store = EmbeddingStore(store_path / "embeddings")
    stored = store.decode(store.read(int(store.rows(plan.val.listing.ids[:1])[0]))[None])[1][0]
    np.testing.assert_allclose(first.teacher, stored.numpy(), rtol=2e-3, atol=2e-3)


def test_statistics_of_nothing_or_of_what_is_not_finite_are_refused(
    make_online: MakeTraining,
    one_process: Process,
    photographs_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Sam3Teacher, "__call__", lambda _, pixels: torch.full((len(pixels), 64, 16, 16), torch.nan))
    with pytest.raises(UserError, match="not finite"):
        train(make_online(*CHANNEL, "TAG", "nan"), one_process)
    shutil.copytree(photographs_path, tmp_path / "data")
    for path in (tmp_path / "data" / "images" / "train").iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="None of the first 6 training images"):
        train(make_online(*CHANNEL, data=tmp_path / "data"), one_process)


def test_the_teacher_in_the_loop_can_be_compiled_for_the_trainings_batch(
    make_online: MakeTraining, one_process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(Sam3Teacher, "compile", lambda _, batch_size: asked.append(batch_size))
    config = make_online("TEACHER.COMPILE", "true")
    with plan_training(config).targets.open(one_process):
        assert asked == [config.DATA.BATCH_SIZE]
