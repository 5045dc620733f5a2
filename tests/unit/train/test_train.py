import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from efficientsam3.checkpoints.training import checkpoint_path, load_training_checkpoint
from efficientsam3.config.schema import ExportConfig, TrainConfig
from efficientsam3.embed.plan import plan_embedding
from efficientsam3.embed.run import embed_dataset
from efficientsam3.runtime.distributed import Process
from efficientsam3.runtime.errors import UserError
from efficientsam3.train.plan import plan_training
from efficientsam3.train.run import check_training, train
from efficientsam3.train.sampler import EpochSampler

MakeTraining = Callable[..., TrainConfig]
MakeExport = Callable[..., ExportConfig]


def metrics(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_the_loss_falls_and_everything_documented_is_written(make_training: MakeTraining, one_process: Process) -> None:
    config = make_training("TRAIN.BASE_LR", "0.02", "TRAIN.EPOCHS", "4")
    summary = train(config, one_process)
    lines = metrics(config.output_dir)
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    assert lines[-1]["train/loss"] < 0.9 * lines[0]["train/loss"]
    assert set(lines[0]) == {
        "epoch",
        "step",
        "lr",
        "train/skipped_steps",
        *(f"{s}/{n}" for s in ("train", "val") for n in ("loss", "mse", "cosine", "relative_mse")),
    }
    assert summary.checkpoint == config.output_dir / "ckpt_epoch_3.pth"
    names = {path.name for path in config.output_dir.iterdir()}
    assert {f"ckpt_epoch_{epoch}.pth" for epoch in range(4)} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    content = torch.load(summary.checkpoint, weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in content["model"].values())
    assert content["architecture"]["backbone"] == "efficientvit_b0"
    assert content["preprocessing"]["image_size"] == 224


def test_an_interrupted_run_ends_with_the_same_numbers(make_training: MakeTraining, one_process: Process) -> None:
    """Epochs 1 and 2 again, from the checkpoint of epoch 0 and from none: losses and weights are the same."""
    config = make_training()
    train(config, one_process)
    undisturbed, weights = metrics(config.output_dir), load_training_checkpoint(checkpoint_path(config.output_dir, 2))
    for epoch in (1, 2):
        checkpoint_path(config.output_dir, epoch).unlink()
    train(config, one_process)
    assert metrics(config.output_dir) == undisturbed
    again = load_training_checkpoint(checkpoint_path(config.output_dir, 2))
    for key, value in weights["model"].items():
        assert torch.equal(again["model"][key], value), key


def test_accumulation_takes_the_gradient_of_the_larger_batch(make_training: MakeTraining, one_process: Process) -> None:
    config = make_training("TRAIN.ACCUMULATION_STEPS", "2", "TRAIN.EPOCHS", "1", "SAVE_FREQ", "5")
    train(config, one_process)
    content = load_training_checkpoint(checkpoint_path(config.output_dir, 0))  # the last epoch is always saved
    assert content["step"] == 2  # 6 images, 3 batches of 2: a group of two and one of one


def test_a_picture_broken_after_the_export_is_reported_and_training_goes_on(
    make_training: MakeTraining, one_process: Process, photographs_path: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(photographs_path, data)
    for name in ("sa_3", "sa_4"):
        (data / "images" / "train" / f"{name}.jpg").write_bytes(b"")
    summary = train(make_training("DATA.BATCH_SIZE", "1", "TRAIN.EPOCHS", "1", data=data), one_process)
    assert len(summary.broken) == 2
    assert all(math.isfinite(value) for value in summary.metrics.values())


def test_a_damaged_record_is_reported_by_name_and_training_goes_on(
    make_training: MakeTraining, one_process: Process, store_path: Path, tmp_path: Path
) -> None:
    store = tmp_path / "damaged"
    shutil.copytree(store_path, store)
    values = bytearray((store / "embeddings" / "rank0-values.bin").read_bytes())
    values[100] ^= 1
    (store / "embeddings" / "rank0-values.bin").write_bytes(values)
    summary = train(make_training("TRAIN.EPOCHS", "1", "DATA.NUM_WORKERS", "1", store=store), one_process)
    first = (store / "embeddings" / "rank0-keys.txt").read_text().splitlines()[0]
    assert [f"image {first!r}" in sentence for sentence in summary.broken] == [True]


def test_images_without_an_embedding_are_left_out(
    make_training: MakeTraining, make_export: MakeExport, one_process: Process, tmp_path: Path
) -> None:
    embed_dataset(plan_embedding(make_export("DATA.NUM_SAMPLES", "3")), one_process)
    config = make_training("TRAIN.EPOCHS", "1", store=tmp_path / "teacher")
    train(config, one_process)
    assert metrics(config.output_dir)[0]["step"] == 2  # 3 of 6 images, batches of 2


def test_loss_that_is_never_finite_stops_the_run_with_the_images(
    make_training: MakeTraining, one_process: Process
) -> None:
    config = make_training("DISTILL.PIXEL_WISE", "1e38", "DATA.BATCH_SIZE", "1", "TRAIN.EPOCHS", "5")
    with pytest.raises(UserError, match=r"10 steps in a row.*sa_"):
        train(config, one_process)


def test_padding_is_learnt_of_a_teacher_that_pads(
    make_export: MakeExport, make_training: MakeTraining, one_process: Process, tmp_path: Path
) -> None:
    embed_dataset(plan_embedding(make_export("DATA.RESIZE", "pad")), one_process)
    first = []
    for padding in ("false", "true"):
        opts = ["DISTILL.PADDING", padding, "TRAIN.EPOCHS", "1", "TAG", f"padding-{padding}"]
        config = make_training(*opts, store=tmp_path / "teacher")
        train(config, one_process)
        first.append(metrics(config.output_dir)[0])
    assert first[0].keys() == first[1].keys()
    assert first[0]["train/loss"] != pytest.approx(first[1]["train/loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("opts", "named"),
    [
        (["DISTILL.EMBED_DIM", "1024"], "holds embeddings of 64 channels"),
        (["DATA.IMG_SIZE", "1008"], "embedded at 224 pixels"),
        (["DATA.RESIZE", "pad"], "asks for"),
        (["DATA.MEAN", "[0.485, 0.456, 0.406]"], "asks for"),
        (["DATA.DATA_PATH", "/absent"], "/absent"),
        (["DISTILL.TEACHER_EMBED_PATH", "/absent"], "/absent does not exist"),
        (["MODEL.BACKBONE", "resnet"], "'resnet' is not known"),
        (["MODEL.RESUME", "/absent.pth"], r"/absent\.pth is not a file"),
        (["MODEL.PRETRAINED", "/absent.pth"], r"/absent\.pth is not a file"),
        (["MODEL.PRETRAINED", "true"], "MODEL.PRETRAINED true"),
        (["DISTILL.PADDING", "true"], "no effect on a store whose images fill the encoder's input"),
        (["TRAIN.USE_SYNC_BN", "true", "DEVICE", "cpu"], "--use-sync-bn needs GPUs"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    make_training: MakeTraining, tmp_path: Path, opts: list[str], named: str
) -> None:
    config = make_training()
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        config = _replace(config, key.split("."), value)
    with pytest.raises(UserError, match=named):
        check_training(plan_training(config))
    assert not (tmp_path / "student").exists()


def test_a_decoder_in_the_loop_must_take_the_teacher_s_embeddings(
    make_training: MakeTraining, sam_decoder: Path, tmp_path: Path
) -> None:
    opts = ("DISTILL.PIXEL_WISE", "0", "DISTILL.COSINE", "0", "DISTILL.MASKS.DECODER")
    with pytest.raises(UserError, match="64 channels on 16x16 cells at 224 pixels, the decoder takes 16 on 4x4 at 64"):
        plan_training(make_training(*opts, str(sam_decoder)))
    with pytest.raises(UserError, match=r"absent\.onnx is not a file"):
        plan_training(make_training(*opts, "absent.onnx"))
    assert not (tmp_path / "student").exists()


def test_a_checkpoint_of_another_model_is_refused(make_training: MakeTraining, one_process: Process) -> None:
    train(make_training("TRAIN.EPOCHS", "1"), one_process)
    with pytest.raises(UserError, match=r"efficientvit_b0.*not of.*repvit_m0_9"):
        check_training(plan_training(make_training("MODEL.BACKBONE", "repvit_m0_9")))
    check_training(plan_training(make_training("MODEL.BACKBONE", "repvit_m0_9", "TRAIN.AUTO_RESUME", "false")))


def test_a_damaged_checkpoint_is_refused(make_training: MakeTraining, one_process: Process) -> None:
    config = make_training("TRAIN.EPOCHS", "1")
    path = train(config, one_process).checkpoint
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"ckpt_epoch_0\.pth is broken"):
        check_training(plan_training(config))


def test_a_store_in_the_published_format_trains(
    make_training: MakeTraining, one_process: Process, store_path: Path, tmp_path: Path
) -> None:
    store = tmp_path / "published"
    shutil.copytree(store_path, store)
    for name in ("manifest.json", "rank0-crc32.bin"):
        (store / "embeddings" / name).unlink()
    statistics = ["DATA.RESIZE", "square", "DATA.MEAN", "[0.5, 0.5, 0.5]", "DATA.STD", "[0.5, 0.5, 0.5]"]
    config = make_training(*statistics, "TRAIN.EPOCHS", "1", store=store)
    with_manifest = make_training("TRAIN.EPOCHS", "1", "OUTPUT", str(tmp_path / "other"), "TAG", "other")
    assert train(config, one_process).metrics == train(with_manifest, one_process).metrics
    with pytest.raises(UserError, match=r"DATA\.RESIZE, DATA\.MEAN, DATA\.STD cannot be 'teacher'"):
        check_training(plan_training(make_training(store=store)))


def test_sizes_left_to_the_teacher_are_the_stores_and_recorded_as_numbers(
    make_training: MakeTraining, one_process: Process
) -> None:
    train(make_training("TRAIN.EPOCHS", "1"), one_process)
    teachers = ["DATA.IMG_SIZE", "teacher", "DISTILL.EMBED_SIZE", "teacher", "DISTILL.EMBED_DIM", "teacher"]
    check_training(plan_training(make_training("TRAIN.EPOCHS", "1", *teachers)))


def _replace(model: object, keys: list[str], value: str) -> TrainConfig:
    """As `--opts` would, beyond what a flag of the fixture sets."""
    import yaml

    tree = json.loads(model.model_dump_json())  # type: ignore[attr-defined]
    section = tree
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = yaml.safe_load(value)
    return TrainConfig.model_validate(tree)


def test_a_reading_window_trains_on_every_image(
    make_training: MakeTraining, one_process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[list[int]] = []
    iterate = EpochSampler.__iter__

    def spy(sampler: EpochSampler) -> Iterator[int]:
        orders.append(list(iterate(sampler)))
        return iter(orders[-1])

    monkeypatch.setattr(EpochSampler, "__iter__", spy)
    train(make_training("TRAIN.EPOCHS", "1", "DISTILL.READ_WINDOW", "2", "DATA.NUM_WORKERS", "0"), one_process)
    assert [sorted(order) for order in orders] == [list(range(6))]
