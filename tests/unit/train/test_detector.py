"""The detector in the loop: its losses, how queries are matched, its gradients, and what it is asked."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efficientsam3.checkpoints.standardisation import Standardisation
from efficientsam3.checkpoints.training import latest_checkpoint, load_training_checkpoint
from efficientsam3.config.schema import TrainConfig
from efficientsam3.data.objects import POINTS, ImageObjects
from efficientsam3.data.phrases import read_phrases
from efficientsam3.runtime.distributed import Process
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.detector import Concepts, Detections, Detector, load_detector
from efficientsam3.testing.tiny_sam3 import TinySam3, write_tiny_sam3
from efficientsam3.train.concepts import draw_phrases
from efficientsam3.train.detector import DetectorObjective, DetectorSettings, compare_detections, match
from efficientsam3.train.objective import FeatureObjective
from efficientsam3.train.plan import plan_training
from efficientsam3.train.prompts import Shown
from efficientsam3.train.run import train

MakeTraining = Callable[..., TrainConfig]
NAMES = ["detector_mask", "detector_box", "detector_score", "detector_presence"]
PHRASES = ("bird", "cat", "dog", "kite")
# Of the small SAM3's scores, which lie between 0.15 and 0.21, a few are above.
SETTINGS = DetectorSettings(
    text=2, visual=1, threshold=0.19, at_once=0, weight=0.5, mask=5.0, box=2.0, score=1.0, presence=1.0
)
SIZES = torch.tensor([[224, 224], [200, 224]])
GENERATOR = torch.Generator().manual_seed(0)
TEACHER, STUDENT = (torch.randn(2, 64, 16, 16, generator=GENERATOR) for _ in range(2))


def objects(*nouns: str) -> ImageObjects:
    boxes = np.array([[20, 30, 120, 100], [60, 60, 200, 180]], np.float32)
    return ImageObjects((224, 224), boxes, np.repeat(boxes[:, None, :2] + 1, POINTS, axis=1), nouns)


SHOWN = Shown(["a", "b"], SIZES, [objects("cat", "dog"), None], 0)


@pytest.fixture
def detector(tiny_sam3_path: Path) -> Detector:
    found = load_detector(tiny_sam3_path, PHRASES)
    found.encode_phrases()
    return found


def objective(detector: Detector, **changes: Any) -> DetectorObjective:
    features = FeatureObjective({"mse": 1.0})
    return DetectorObjective(features, None, detector, PHRASES, replace(SETTINGS, **changes), seed=3)


def detections(generator: torch.Generator, prompts: int = 3, queries: int = 12) -> Detections:
    """Answers of which a third is found, in masks of 8 x 8."""
    low = 0.6 * torch.rand(prompts, queries, 2, generator=generator)
    boxes = torch.cat([low, low + 0.1 + 0.3 * torch.rand(prompts, queries, 2, generator=generator)], dim=2)
    logits = torch.randn(prompts, queries, generator=generator) - 3
    logits[:, ::3] += 8
    masks = 4 * torch.randn(prompts, queries, 8, 8, generator=generator)
    return Detections(masks, boxes, logits, 4 + torch.randn(prompts, generator=generator))


def permuted(answers: Detections, order: torch.Tensor) -> Detections:
    return replace(answers, **{name: getattr(answers, name)[:, order] for name in ("masks", "boxes", "logits")})


def test_a_copy_of_the_teacher_with_permuted_queries_has_no_loss() -> None:
    generator = torch.Generator().manual_seed(1)
    teacher, valid = detections(generator), torch.ones(3, 8, 8, dtype=torch.bool)
    order = torch.randperm(12, generator=generator)
    copy = permuted(teacher, order)
    there = teacher.scores > 0.5
    assert 3 * 3 < there.sum() < 3 * 6
    assert torch.equal(order[match(copy, teacher, there, valid)], torch.arange(12).expand(3, -1))
    assert compare_detections(copy, teacher, valid, 0.5).abs().max() < 1e-5
    # Each part of an answer is missed where it changes.
    for change, expected in (
        ({"masks": -copy.masks}, [True, False, False, False]),
        ({"boxes": copy.boxes + 0.03}, [False, True, False, False]),
        ({"logits": copy.logits - 0.2}, [False, False, True, False]),
        ({"presence": copy.presence - 1}, [False, False, False, True]),
    ):
        figures = compare_detections(replace(copy, **change), teacher, valid, 0.5)
        assert ((figures > 1e-3).all(0)).tolist() == expected
        assert ((figures.abs() < 1e-5).all(0)).tolist() == [not each for each in expected]


def test_the_mask_tells_apart_what_has_one_box_and_score() -> None:
    teacher = detections(torch.Generator().manual_seed(2))
    teacher = replace(teacher, boxes=teacher.boxes[:, :1].expand(-1, 12, -1), logits=torch.full((3, 12), 4.0))
    valid = torch.ones(3, 8, 8, dtype=torch.bool)
    assert compare_detections(permuted(teacher, torch.arange(11, -1, -1)), teacher, valid, 0.5).abs().max() < 1e-5


def test_masks_and_boxes_count_where_the_teacher_finds_something_and_the_image_is() -> None:
    teacher, own = (detections(torch.Generator().manual_seed(seed)) for seed in (3, 4))
    valid = torch.ones(3, 8, 8, dtype=torch.bool)
    valid[..., 5:] = False
    nothing = replace(teacher, presence=torch.full((3,), -9.0))
    figures = compare_detections(own, nothing, valid, 0.5)
    assert (figures[:, :2] == 0).all()
    assert (figures[:, 2:] > 0).all()
    before = compare_detections(own, teacher, valid, 0.5)
    assert (before > 0).all()
    noise = own.masks.clone()
    noise[..., 5:] += 10
    torch.testing.assert_close(compare_detections(replace(own, masks=noise), teacher, valid, 0.5), before)
    broken = replace(own, masks=own.masks * torch.nan, boxes=own.boxes * torch.nan, logits=own.logits * torch.nan)
    assert compare_detections(broken, teacher, valid, 0.5).isnan().any()  # and no error: the step is skipped


def test_a_student_that_answers_as_the_teacher_has_no_loss_and_no_gradient(detector: Detector) -> None:
    student = TEACHER.clone().requires_grad_()
    losses = objective(detector).added(student, TEACHER, torch.ones(2), SHOWN)
    assert list(losses) == NAMES
    for loss in losses.values():
        (gradient,) = torch.autograd.grad(loss, student, retain_graph=True)
        assert loss.item() == pytest.approx(0, abs=1e-6)
        assert gradient.abs().max() < 1e-6
    other = objective(detector).added(STUDENT, TEACHER, torch.ones(2), SHOWN)
    assert all(loss > 1e-3 for loss in other.values())


def test_gradients_are_those_of_finite_differences(detector: Detector) -> None:
    # From the second layer on, the decoder refers to boxes that pass on no gradient.
    detector.detector.detr_decoder.layers = detector.detector.detr_decoder.layers[:1]
    answers = objective(detector.double(), text=1, at_once=2)
    weights = torch.tensor([1.0, 0.0], dtype=torch.float64)

    def total(student: torch.Tensor) -> torch.Tensor:
        losses = answers.added(student, TEACHER.double(), weights, SHOWN)
        return torch.stack([losses[name].double() for name in NAMES]).sum()

    student = STUDENT.double().requires_grad_()
    (gradient,) = torch.autograd.grad(total(student), student)
    assert gradient[1].abs().max() == 0
    with torch.no_grad():
        step = 0.1 * torch.randn(student.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        step = step + gradient / gradient.norm()
        slope = (total(student + 0.01 * step) - total(student - 0.01 * step)) / 0.02
    assert slope.item() == pytest.approx((gradient * step).sum().item(), rel=1e-2)


def test_what_is_asked_at_once_changes_memory_alone(detector: Detector) -> None:
    student, valid = STUDENT.clone().requires_grad_(), torch.ones(2, 16, 16, dtype=torch.bool)
    found = []
    for at_once in (0, 2):
        losses = objective(detector, at_once=at_once)(student, TEACHER, valid, torch.ones(2), SHOWN)
        found.append((losses, torch.autograd.grad(losses["loss"], student)[0]))
    assert list(found[0][0]) == ["loss", "mse", *NAMES]
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-3, atol=1e-6)
    losses = found[0][0]
    weighted = sum(weight * losses[name] for weight, name in zip((5, 2, 1, 1), NAMES, strict=True))
    assert losses["loss"].item() == pytest.approx((losses["mse"] + 0.5 * weighted).item())


def test_a_student_of_standardised_features_is_asked_in_the_teacher_s_scale(detector: Detector) -> None:
    standardisation = Standardisation(torch.linspace(-1, 2, 64), torch.linspace(0.5, 3, 64))
    features, valid = FeatureObjective({"mse": 1.0}, standardisation), torch.ones(2, 16, 16, dtype=torch.bool)
    asked = DetectorObjective(features, standardisation, detector, PHRASES, SETTINGS, 3)
    found = asked(standardisation.standardise(STUDENT), TEACHER, valid, torch.ones(2), SHOWN)
    expected = objective(detector)(STUDENT, TEACHER, valid, torch.ones(2), SHOWN)
    for name in NAMES:
        assert found[name].item() == pytest.approx(expected[name].item(), rel=1e-3, abs=1e-6)


def test_examples_lie_on_objects_or_in_cells_of_the_image(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Concepts] = []
    forward = Detector.forward

    def spy(self: Detector, features: Any, concepts: Concepts) -> Detections:
        asked.append(concepts)
        return forward(self, features, concepts)

    monkeypatch.setattr(Detector, "forward", spy)
    objective(detector, text=1, visual=2).added(STUDENT, TEACHER, torch.ones(2), SHOWN)
    concepts = asked[0]
    assert concepts.images.tolist() == [0, 1, 0, 0, 1, 1]
    assert concepts.labels.tolist() == [-10, -10, 1, 1, 1, 1]
    assert concepts.phrases[2:].tolist() == detector.places(["visual"] * 4)
    expected = {(70, 65, 100, 70), (130, 120, 140, 120)}  # cxcywh
    assert {tuple(round(224 * value) for value in box.tolist()) for box in concepts.boxes[2:4]} == expected
    grid = concepts.boxes[4:] * 224
    assert grid[:, 2:].tolist() == [[pytest.approx(28), pytest.approx(25)]] * 2  # an eighth of 224 x 200
    assert (grid[:, 1] < 200).all()


def test_phrases_are_a_function_of_seed_epoch_and_image() -> None:
    shown = Shown(["a", "b", "c"], SIZES, [objects("cat", "dog"), None, objects(*PHRASES)], 0)
    first = draw_phrases(shown, PHRASES, 4, seed=3)
    there = [phrase in ("cat", "dog") for phrase in first[0]]
    assert there in ([True, False] * 2, [False, True] * 2)
    assert all(sorted(phrases) == list(PHRASES) for phrases in first)
    alone = draw_phrases(Shown(["b", "a"], SIZES, [None, objects("cat", "dog")], 0), PHRASES, 4, seed=3)
    assert alone == [first[1], first[0]]
    others = [
        draw_phrases(replace(shown, epoch=epoch), PHRASES, 4, seed=seed) for epoch, seed in ((1, 3), (2, 3), (0, 4))
    ]
    assert all(other != first for other in others)
    assert draw_phrases(shown, (), 0, seed=3) == [[], [], []]


def test_phrases_are_read_a_line_each(tmp_path: Path) -> None:
    path = tmp_path / "phrases.txt"
    path.write_text("a dog\n\n  Äpfel \n", encoding="utf-8")
    assert read_phrases(path) == ["a dog", "Äpfel"]
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="not UTF-8"):
        read_phrases(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_phrases(tmp_path / "none.txt")


def test_a_training_adds_the_detector_s_losses_to_those_of_features_and_masks(
    make_training: MakeTraining, one_process: Process, tiny_sam3_path: Path, tmp_path: Path
) -> None:
    phrases = tmp_path / "phrases.txt"
    phrases.write_text("dog\ncat\n")
    opts = ["DISTILL.DETECTOR.CHECKPOINT", str(tiny_sam3_path), "DISTILL.DETECTOR.PHRASES", str(phrases)]
    opts += ["DISTILL.DETECTOR.THRESHOLD", "0.1", "DISTILL.MASKS.DECODER", str(tiny_sam3_path)]
    opts += ["TRAIN.EPOCHS", "1", "DATA.NUM_SAMPLES", "2", "DATA.BATCH_SIZE", "1", "DISTILL.NORMALIZE", "channel"]
    config = make_training(*opts)
    train(config, one_process)
    (line,) = (json.loads(text) for text in (config.output_dir / "metrics.jsonl").read_text().splitlines())
    for name in ("mse", "mask_bce", *NAMES):
        assert line[f"train/{name}"] > 0
        assert line[f"val/{name}"] > 0
    recorded = load_training_checkpoint(latest_checkpoint(config.output_dir))["config"]
    assert recorded["DISTILL"]["DETECTOR"]["PHRASES"] == ["cat", "dog"]
    assert "DETECTOR" not in plan_training(make_training()).recorded["DISTILL"]


def test_a_detector_that_cannot_be_asked_is_refused_before_work_begins(
    make_training: MakeTraining, tiny_sam3_path: Path, tmp_path: Path
) -> None:
    given = ["DISTILL.DETECTOR.CHECKPOINT", str(tiny_sam3_path)]
    with pytest.raises(UserError, match=r"no names of categories: list phrases as DISTILL\.DETECTOR\.PHRASES"):
        plan_training(make_training(*given))
    assert plan_training(make_training(*given, "DISTILL.DETECTOR.TEXT", "0")).detector is not None
    with pytest.raises(UserError, match="TEXT and VISUAL are both 0"):
        make_training(*given, "DISTILL.DETECTOR.TEXT", "0", "DISTILL.DETECTOR.VISUAL", "0")
    with pytest.raises(UserError, match="nothing would be learnt"):
        make_training(*given, "DISTILL.PIXEL_WISE", "0", "DISTILL.COSINE", "0", "DISTILL.DETECTOR.WEIGHT", "0")
    with pytest.raises(UserError, match=r"DISTILL\.DETECTOR\.WEIGHT 1\.0 has no effect without"):
        make_training("DISTILL.DETECTOR.WEIGHT", "1")
    other = tmp_path / "other.pt"
    write_tiny_sam3(other, tiny=TinySam3(grid=8))
    with pytest.raises(UserError, match="give the decoder of its teacher"):
        plan_training(make_training("DISTILL.DETECTOR.CHECKPOINT", str(other), "DISTILL.DETECTOR.PHRASES", "[dog]"))
