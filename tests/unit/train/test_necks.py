"""Necks that are trained with the student: gradients, rates, checkpoints; and the loss of their levels."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from efficientsam3.checkpoints.necks import NECK_PREFIXES, digest_neck, read_trained_necks, under
from efficientsam3.checkpoints.training import latest_checkpoint, load_training_checkpoint
from efficientsam3.config.schema import TrainConfig
from efficientsam3.data.objects import POINTS, ImageObjects
from efficientsam3.runtime.distributed import Process
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.contents import read_contents
from efficientsam3.sam3.detector import Detector, load_detector
from efficientsam3.sam3.necks import trainable_copy
from efficientsam3.sam3.predictor import Predictor, TrackerPredictor, load_predictor
from efficientsam3.testing.tiny_sam3 import write_tiny_sam3
from efficientsam3.train import build
from efficientsam3.train import masks as masks_module
from efficientsam3.train.detector import DetectorObjective, DetectorSettings
from efficientsam3.train.levels import compare_levels
from efficientsam3.train.masks import MaskObjective, MaskSettings
from efficientsam3.train.objective import AddedObjective, FeatureObjective
from efficientsam3.train.plan import plan_training
from efficientsam3.train.prompts import Shown
from efficientsam3.train.resume import find_checkpoint
from efficientsam3.train.run import train

MakeTraining = Callable[..., TrainConfig]
SIZES = torch.tensor([[224, 224], [200, 224]])
GENERATOR = torch.Generator().manual_seed(0)
TEACHER, STUDENT = (torch.randn(2, 64, 16, 16, generator=GENERATOR) for _ in range(2))
BOXES = np.array([[20, 30, 120, 100], [60, 60, 200, 180]], np.float32)
OBJECTS = ImageObjects((224, 224), BOXES, np.repeat(BOXES[:, None, :2] + 1, POINTS, axis=1), ("cat", "dog"))
SHOWN = Shown(["a", "b"], SIZES, [OBJECTS, None], 0)
MASKS = MaskSettings(prompts=2, rounds=0, at_once=0, weight=0.5, bce=5.0, dice=5.0, iou=1.0, levels=1.0)
DETECTOR = DetectorSettings(1, 1, 0.19, at_once=0, weight=0.5, mask=5.0, box=2.0, score=1.0, presence=1.0, levels=1.0)
LEVELS = {"tracker": "mask_levels", "detector": "detector_levels"}


@pytest.fixture
def predictor(tiny_sam3_path: Path) -> Predictor:
    return load_predictor(tiny_sam3_path, torch.device("cpu"))


@pytest.fixture
def detector(tiny_sam3_path: Path) -> Detector:
    return load_detector(tiny_sam3_path, ("cat", "dog"))


def objective(part: Predictor | Detector, **changes: Any) -> AddedObjective:
    features = FeatureObjective({"mse": 1.0})
    if isinstance(part, Detector):
        return DetectorObjective(features, None, part, ("cat", "dog"), replace(DETECTOR, **changes), 3)
    return MaskObjective(features, part, replace(MASKS, **changes), 3)


@pytest.mark.parametrize("name", ["tracker", "detector"])
def test_the_student_s_features_alone_pass_the_trained_neck(name: str, request: pytest.FixtureRequest) -> None:
    part = request.getfixturevalue({"tracker": "predictor"}.get(name, name))
    neck, answers = trainable_copy(part.neck), objective(part)
    trained = [parameter for parameter in neck.parameters() if parameter.requires_grad]
    assert 0 < len(trained) < len(list(neck.parameters()))  # the coarsest level is not read
    losses = answers.added(TEACHER, TEACHER, torch.ones(2), SHOWN, {name: neck})
    for loss in (losses[key] for key in losses if key != "mask_agreement"):
        assert loss.item() == pytest.approx(0, abs=1e-6)
        gradients = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
        assert all(gradient is None or gradient.abs().max() < 1e-5 for gradient in gradients)
    # Every parameter has a gradient, which DistributedDataParallel waits for.
    other = answers(STUDENT, TEACHER, torch.ones(2, 16, 16, dtype=torch.bool), torch.ones(2), SHOWN, {name: neck})
    assert all(gradient.abs().max() > 0 for gradient in torch.autograd.grad(other["loss"], trained))
    with torch.no_grad():
        for parameter in neck.parameters():
            parameter.mul_(2)
    moved = answers.added(TEACHER, TEACHER, torch.ones(2), SHOWN, {name: neck})
    assert moved[LEVELS[name]] > 0.1
    assert moved[next(iter(moved))] > 1e-3
    wrong = "detector" if name == "tracker" else "tracker"
    same = answers.added(TEACHER, TEACHER, torch.ones(2), SHOWN, {wrong: neck})
    assert same[LEVELS[name]] == 0


@pytest.mark.parametrize("name", ["tracker", "detector"])
def test_gradients_of_a_neck_are_those_of_finite_differences(name: str, request: pytest.FixtureRequest) -> None:
    part = request.getfixturevalue({"tracker": "predictor"}.get(name, name))
    if isinstance(part, Detector):
        # From the second layer on, the decoder refers to boxes that pass on no gradient.
        part.detector.detr_decoder.layers = part.detector.detr_decoder.layers[:1]
        part.encode_phrases()
    answers, neck = objective(part.double()), trainable_copy(part.neck)
    trained = [parameter for parameter in neck.parameters() if parameter.requires_grad]
    student, teacher, weights = STUDENT.double(), TEACHER.double(), torch.tensor([1.0, 0.0], dtype=torch.float64)

    def total() -> torch.Tensor:
        losses = answers.added(student, teacher, weights, SHOWN, {name: neck})
        return torch.stack([loss.double() for key, loss in losses.items() if key != "mask_agreement"]).sum()

    gradients = torch.autograd.grad(total(), trained)
    generator = torch.Generator().manual_seed(1)
    steps = []
    for parameter, gradient in zip(trained, gradients, strict=True):
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        size = parameter.detach().norm() / noise.norm()
        steps.append(1e-2 * size * noise + 1e-2 * gradient / gradient.norm())
    expected = sum((gradient * step).sum().item() for gradient, step in zip(gradients, steps, strict=True))
    found = []
    with torch.no_grad():
        for sign in (1, -1):
            torch._foreach_add_(trained, steps, alpha=sign * 0.02)
            found.append(total().item())
            torch._foreach_sub_(trained, steps, alpha=sign * 0.02)
    assert (found[0] - found[1]) / 0.04 == pytest.approx(expected, rel=1e-2)


def test_levels_count_where_the_image_is_as_a_share_of_the_teacher_s() -> None:
    sizes, weights = torch.tensor([[32, 64], [64, 64]]), torch.tensor([1.0, 0.0])
    teacher = [torch.full((2, 3, side, side), 2.0) for side in (8, 4)]
    own = [level.clone() for level in teacher]
    assert compare_levels(own, teacher, sizes, 64, weights) == 0
    own[0][0, :, :4] = 3.0
    assert compare_levels(own, teacher, sizes, 64, weights).item() == pytest.approx(0.25 / 2)
    for level in own:
        level[0, :, level.shape[2] // 2 :] = 100.0  # padding
        level[1] = 100.0  # a stand-in
    assert compare_levels(own, teacher, sizes, 64, weights).item() == pytest.approx(0.25 / 2)


def test_levels_alone_need_no_masks_and_no_answers(
    predictor: Predictor, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(TrackerPredictor, "forward", refuse)
    monkeypatch.setattr(Detector, "forward", refuse)
    silent: dict[str, Any] = {"mask": 0.0, "box": 0.0, "score": 0.0, "presence": 0.0}
    for name, answers in (
        ("mask_levels", objective(predictor, bce=0.0, dice=0.0, iou=0.0)),
        ("detector_levels", objective(detector, **silent)),
    ):
        student = STUDENT.clone().requires_grad_()
        losses = answers(student, TEACHER, torch.ones(2, 16, 16, dtype=torch.bool), torch.ones(2), SHOWN)
        assert list(losses) == ["loss", "mse", name]
        assert losses["loss"].item() == pytest.approx((losses["mse"] + 0.5 * losses[name]).item())
        (gradient,) = torch.autograd.grad(losses[name], student)
        assert gradient.abs().max() > 0


def opts_of(path: Path, *more: str) -> list[str]:
    opts = ["DISTILL.MASKS.DECODER", str(path), "DISTILL.MASKS.NECK", "0.5", "DISTILL.MASKS.ROUNDS", "0"]
    return [*opts, "TRAIN.EPOCHS", "1", "DATA.NUM_SAMPLES", "2", "DATA.BATCH_SIZE", "2", *more]


def own_neck(path: Path, name: Any = "tracker") -> dict[str, torch.Tensor]:
    return under(read_contents(path).tensors, name)


def test_a_step_moves_the_neck_by_its_share_of_the_rate_and_the_checkpoint_holds_it(
    make_training: MakeTraining, one_process: Process, tiny_sam3_path: Path
) -> None:
    detector = ["DISTILL.DETECTOR.CHECKPOINT", str(tiny_sam3_path), "DISTILL.DETECTOR.NECK", "2"]
    detector += ["DISTILL.DETECTOR.TEXT", "0", "DISTILL.DETECTOR.LEVELS", "1", "TRAIN.WEIGHT_DECAY", "0"]
    opts = opts_of(tiny_sam3_path, *detector, "TRAIN.EMA", "0.9", "TRAIN.LR_SCALING", "none", "TRAIN.BASE_LR", "1e-4")
    config = make_training(*opts)
    train(config, one_process)
    path = latest_checkpoint(config.output_dir)
    assert path is not None
    content = load_training_checkpoint(path)
    (line,) = (json.loads(text) for text in (config.output_dir / "metrics.jsonl").read_text().splitlines())
    assert line["train/detector_levels"] > 0
    assert line["val/detector_levels"] > 0
    for name, factor in (("tracker", 0.5), ("detector", 2.0)):
        own = own_neck(tiny_sam3_path, name)
        assert content["necks"]["origins"][name] == digest_neck(own)
        found = under(content["necks"]["model"], name)  # type: ignore[arg-type]
        assert 0 < len(found) < len(own)  # the coarsest level is not read
        moved = torch.cat([(found[key] - own[key]).abs().flatten() for key in found])
        assert moved.max().item() == pytest.approx(factor * 1e-4, rel=1e-2)  # AdamW's first step
    read = read_trained_necks(path)
    assert read is not None
    assert all(torch.equal(read.state[key], value) for key, value in content["necks"]["ema"].items())
    recorded = content["config"]["DISTILL"]
    assert recorded["MASKS"]["NECK"] == 0.5
    assert "LEVELS" not in recorded["MASKS"]  # as in checkpoints from before there was a choice
    assert "LEVELS" in recorded["DETECTOR"]


def test_a_skipped_step_leaves_the_neck_as_it_is(
    make_training: MakeTraining, one_process: Process, tiny_sam3_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = masks_module.compare
    monkeypatch.setattr(masks_module, "compare", lambda *given: compare(*given) * torch.nan)
    config = make_training(*opts_of(tiny_sam3_path))
    train(config, one_process)
    content = load_training_checkpoint(latest_checkpoint(config.output_dir) or Path())
    own = own_neck(tiny_sam3_path)
    for key, value in under(content["necks"]["model"], "tracker").items():
        assert torch.equal(value, own[key])


def test_a_training_is_not_resumed_with_other_necks(
    make_training: MakeTraining, one_process: Process, tiny_sam3_path: Path, tmp_path: Path
) -> None:
    train(make_training(*opts_of(tiny_sam3_path)), one_process)
    for opts in (["DISTILL.MASKS.NECK", "0"], ["DISTILL.DETECTOR.CHECKPOINT", str(tiny_sam3_path)]):
        more = ["DISTILL.DETECTOR.TEXT", "0", "DISTILL.DETECTOR.NECK", "1"] if len(opts[0]) > 20 else []
        plan = plan_training(make_training(*opts_of(tiny_sam3_path, *opts, *more)))
        with pytest.raises(
            UserError, match=r"training other necks \(of tracker\) than .* ask for \(of (none|detector and tracker)\)"
        ):
            find_checkpoint(plan, 1, allow_config_change=True)
    other = tmp_path / "other.pt"
    write_tiny_sam3(other, seed=5)
    plan = plan_training(make_training(*opts_of(other)))
    with pytest.raises(UserError, match="necks of another SAM3"):
        find_checkpoint(plan, 1, allow_config_change=True)
    plan = plan_training(make_training(*opts_of(tiny_sam3_path), "DISTILL.MASKS.NECK", "0.1"))
    with pytest.raises(UserError, match=r"DISTILL\.MASKS\.NECK: 0\.5 -> 0\.1"):
        find_checkpoint(plan, 1, allow_config_change=False)
    assert find_checkpoint(plan, 1, allow_config_change=True) is not None


@pytest.mark.parametrize("key", ["NECK", "LEVELS"])
def test_what_has_no_neck_is_refused_before_work_begins(
    make_training: MakeTraining, tiny_sam3_path: Path, sam_decoder: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("efficientsam3.sam3.decoders.check_fits", lambda *_: None)
    with pytest.raises(UserError, match=rf"DISTILL\.MASKS\.{key} 1 needs a SAM3 .* has no neck, so leave {key} out\."):
        plan_training(make_training("DISTILL.MASKS.DECODER", str(sam_decoder), f"DISTILL.MASKS.{key}", "1"))
    with pytest.raises(UserError, match=rf"DISTILL\.MASKS\.{key} 1\.0 has no effect without DISTILL\.MASKS\.DECODER"):
        make_training(f"DISTILL.MASKS.{key}", "1")


def test_a_neck_without_losses_is_refused(make_training: MakeTraining, tiny_sam3_path: Path) -> None:
    for section, path in (("MASKS", "DECODER"), ("DETECTOR", "CHECKPOINT")):
        opts = [f"DISTILL.{section}.{path}", str(tiny_sam3_path), f"DISTILL.{section}.NECK", "1"]
        with pytest.raises(UserError, match="NECK trains a neck, but no loss here has a weight"):
            make_training(*opts, f"DISTILL.{section}.WEIGHT", "0")


def test_necks_of_a_damaged_checkpoint_are_named(tmp_path: Path) -> None:
    path, key = tmp_path / "ckpt_epoch_0.pth", NECK_PREFIXES["tracker"] + "fpn_layers.0.proj1.bias"
    for necks, message in (
        ({"origins": {"tracker": "x"}, "model": {"backbone.x": torch.ones(1)}}, "are not those of"),
        ({"origins": {"detector": "x"}, "model": {key: torch.ones(1)}}, "are not those of"),
        ({"origins": {"tracker": "x"}, "model": {key: torch.ones(1) * torch.nan}}, "not finite"),
        ({"origins": {"eye": "x"}, "model": {}}, "necks in checkpoint"),
    ):
        torch.save({"model": {}, "necks": necks}, path)
        with pytest.raises(UserError, match=message):
            read_trained_necks(path)
    torch.save({"model": {}}, path)
    assert read_trained_necks(path) is None


def test_the_necks_are_averaged_and_wrapped_with_their_student() -> None:
    from efficientsam3.train.necks import StudentWithNecks, necks_of, student_of

    student, neck = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
    both = StudentWithNecks(student, {"tracker": neck})
    assert student_of(both) is student
    assert necks_of(both) == {"tracker": neck}
    assert student_of(student) is student
    assert necks_of(student) == {}


def test_a_student_to_start_from_brings_its_necks(
    make_training: MakeTraining,
    one_process: Process,
    tiny_sam3_path: Path,
    with_trained_necks: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    start = with_trained_necks("tracker")
    plan = plan_training(make_training(*opts_of(tiny_sam3_path), "MODEL.PRETRAINED", str(start)))
    found = build._build_necks(plan, one_process, needs_weights=True)["tracker"].state_dict()
    earlier = read_trained_necks(start)
    assert earlier is not None
    assert all(torch.equal(found[key], value) for key, value in earlier.weights("tracker").items())
    own = build._build_necks(plan, one_process, needs_weights=False)["tracker"].state_dict()
    assert all(torch.equal(own[key], value) for key, value in own_neck(tiny_sam3_path).items())
    assert build._build_necks(replace(plan, necks={}), one_process, needs_weights=True) == {}
    assert "has a trained neck of SAM3's tracker, which this training leaves as SAM3 has it" in caplog.text
