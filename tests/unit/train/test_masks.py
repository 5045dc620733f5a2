"""The decoder in the loop: its losses, its gradients, and where its prompts lie."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efficientsam3.checkpoints.standardisation import Standardisation
from efficientsam3.data.objects import POINTS, ImageObjects
from efficientsam3.sam3.predictor import Candidates, Predictor, Prompts, load_predictor
from efficientsam3.train.masks import MaskObjective, MaskSettings
from efficientsam3.train.objective import FeatureObjective
from efficientsam3.train.prompts import Shown, draw_prompts
from sam_decoder import CELLS, WIDTH

SETTINGS = MaskSettings(prompts=2, rounds=2, at_once=0, weight=0.5, bce=5.0, dice=5.0, iou=1.0)
SIZES = torch.tensor([[64, 40], [48, 64], [64, 64]])
GENERATOR = torch.Generator().manual_seed(0)
TEACHER, STUDENT = (torch.randn(3, WIDTH, CELLS, CELLS, generator=GENERATOR) for _ in range(2))


def objects(count: int) -> ImageObjects:
    """Objects whose boxes and points tell them apart."""
    low = np.arange(count, dtype=np.float32)[:, None] + [[2, 3]]
    points = np.repeat(low[:, None] + 1, POINTS, axis=1) + np.arange(POINTS)[:, None] / POINTS
    return ImageObjects((64, 40), np.concatenate([low, low + 9], axis=1), points.astype(np.float32))


SHOWN = Shown(["a", "b", "c"], SIZES, [objects(5), None, objects(1)], 0)


@pytest.fixture
def predictor(sam_decoder: Path) -> Predictor:
    return load_predictor(sam_decoder, torch.device("cpu"))


def objective(predictor: Predictor, **changes: Any) -> MaskObjective:
    features = FeatureObjective({"mse": 1.0})
    return MaskObjective(features, predictor, replace(SETTINGS, **changes), seed=3)


def test_a_student_that_answers_as_the_teacher_has_no_loss_and_no_gradient(predictor: Predictor) -> None:
    student = TEACHER.clone().requires_grad_()
    losses = objective(predictor).added(student, TEACHER, torch.ones(3), SHOWN)
    assert losses["mask_agreement"].item() == pytest.approx(1)
    for name in ("mask_bce", "mask_dice", "mask_iou"):
        (gradient,) = torch.autograd.grad(losses[name], student, retain_graph=True)
        assert losses[name].item() == pytest.approx(0, abs=1e-6)
        assert gradient.abs().max() < 1e-6
    other = objective(predictor).added(STUDENT, TEACHER, torch.ones(3), SHOWN)
    assert all(other[name] > 1e-3 for name in ("mask_bce", "mask_dice", "mask_iou"))
    assert other["mask_agreement"] < 0.9


@pytest.mark.parametrize("at_once", [0, 1])
def test_gradients_are_those_of_finite_differences(predictor: Predictor, at_once: int) -> None:
    masks = objective(predictor.double(), at_once=at_once)
    weights = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)

    def total(student: torch.Tensor) -> torch.Tensor:
        losses = masks.added(student, TEACHER.double(), weights, SHOWN)
        return 5 * losses["mask_bce"].double() + 5 * losses["mask_dice"].double() + losses["mask_iou"].double()

    student = STUDENT.double().requires_grad_()
    (gradient,) = torch.autograd.grad(total(student), student)
    assert gradient[2].abs().max() == 0
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(3):
            step = 1e-2 * torch.randn(student.shape, generator=generator, dtype=torch.float64)
            # Clicks are where the masks' borders are, which do not move by so little.
            slope = (total(student + 0.01 * step) - total(student - 0.01 * step)) / 0.02
            assert slope.item() == pytest.approx((gradient * step).sum().item(), rel=2e-2)


def test_what_is_decoded_at_once_changes_memory_alone(predictor: Predictor) -> None:
    student = STUDENT.clone().requires_grad_()
    found = []
    for at_once in (0, 1, 2):
        losses = objective(predictor, at_once=at_once)(student, TEACHER, _valid(), torch.ones(3), SHOWN)
        found.append((losses, torch.autograd.grad(losses["loss"], student)[0]))
    for losses, gradient in found[1:]:
        torch.testing.assert_close(losses, found[0][0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-3, atol=1e-6)


def test_the_loss_is_the_features_and_the_weighted_masks(predictor: Predictor) -> None:
    weights, valid = torch.tensor([1.0, 1.0, 0.0]), _valid()
    losses = objective(predictor)(STUDENT, TEACHER, valid, weights, SHOWN)
    assert list(losses) == ["loss", "mse", "mask_bce", "mask_dice", "mask_iou", "mask_agreement"]
    masks = 5 * losses["mask_bce"] + 5 * losses["mask_dice"] + losses["mask_iou"]
    assert losses["loss"].item() == pytest.approx((losses["mse"] + 0.5 * masks).item())
    # A stand-in counts for nothing, whatever it shows.
    spoilt = torch.cat([STUDENT[:2], 100 * STUDENT[2:]])
    other = objective(predictor)(spoilt, TEACHER, valid, weights, replace(SHOWN, image_ids=["a", "b", ""]))
    torch.testing.assert_close(other, losses)


def test_a_student_of_standardised_features_is_asked_in_the_teacher_s_scale(predictor: Predictor) -> None:
    standardisation = Standardisation(torch.linspace(-1, 2, WIDTH), torch.linspace(0.5, 3, WIDTH))
    features = FeatureObjective({"mse": 1.0}, standardisation)
    standardised = standardisation.standardise(STUDENT)
    found = MaskObjective(features, predictor, SETTINGS, 3)(standardised, TEACHER, _valid(), torch.ones(3), SHOWN)
    expected = objective(predictor)(STUDENT, TEACHER, _valid(), torch.ones(3), SHOWN)
    for name in ("mask_bce", "mask_dice", "mask_iou", "mse"):
        assert found[name].item() == pytest.approx(expected[name].item(), rel=1e-4)


def test_prompts_are_a_function_of_seed_epoch_and_image(predictor: Predictor) -> None:
    first = draw_prompts(SHOWN, 4, 2, seed=3)
    assert first.images.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert first.is_share.tolist() == [False] * 4 + [True] * 4 + [False] * 4
    assert (first.is_box.reshape(3, 4).sum(1) == 2).all()
    assert len({tuple(box) for box in first.boxes[:4].tolist()}) == 4  # each for another object
    assert len({tuple(box) for box in first.boxes[8:].tolist()}) == 1
    inside = (first.boxes[:, :2] <= first.points) & (first.points <= first.boxes[:, 2:])
    assert inside.all()
    assert ((first.boxes[4:8] >= 0) & (first.boxes[4:8] <= 1)).all()
    alone = draw_prompts(Shown(["c", "a"], SIZES[:2], [objects(1), objects(5)], 0), 4, 2, seed=3)
    np.testing.assert_array_equal(alone.boxes[4:], first.boxes[:4])
    np.testing.assert_array_equal(alone.points[4:], first.points[:4])
    np.testing.assert_array_equal(alone.chances[:, 4:], first.chances[:, :4])
    for other in (draw_prompts(replace(SHOWN, epoch=1), 4, 2, seed=3), draw_prompts(SHOWN, 4, 2, seed=4)):
        assert not np.array_equal(other.points, first.points)
        assert not np.array_equal(other.chances, first.chances)


class Spy(Predictor):
    """A predictor that notes what it is asked and answers."""

    def __init__(self, of: Predictor) -> None:
        super().__init__(of.prompt_encoder, of.mask_decoder, of)
        self.asked: list[tuple[Prompts, Candidates]] = []

    def forward(self, features: list[torch.Tensor], prompts: Prompts) -> Candidates:
        answer: Candidates = super().forward(features, prompts)
        self.asked.append((prompts, answer))
        return answer


def test_clicks_lie_where_the_masks_differ_with_the_teacher_s_label_and_the_student_s_mask(
    predictor: Predictor,
) -> None:
    spy = Spy(predictor)
    objective(spy, prompts=8).added(STUDENT, TEACHER, torch.ones(3), replace(SHOWN, objects=[objects(5)] * 3))
    valid = torch.zeros(3, 16, 16, dtype=torch.bool)
    for mask, (height, width) in zip(valid, (SIZES // 4).tolist(), strict=True):
        mask[:height, :width] = True
    clicks = 0
    for turn in range(0, len(spy.asked), 2):  # teacher, student
        (prompts, teacher), (same, own) = spy.asked[turn : turn + 2]
        assert same is prompts
        if turn % 6 == 4:  # the second and last refinement
            continue
        following = spy.asked[turn + 2][0]
        best = teacher.ious.argmax(1)
        for index, image in enumerate(prompts.images.tolist()):
            point, label = following.points[index, -1], following.labels[index, -1].item()
            column, row = ((point + 0.5) // 4).long().tolist()
            ours, theirs = own.logits[index, best[index]] > 0, teacher.logits[index, best[index]] > 0
            assert valid[image, row, column]
            assert label == int(theirs[row, column])
            if ((ours ^ theirs) & valid[image]).any():
                clicks += 1
                assert ours[row, column] != theirs[row, column]
            assert following.masks is not None
            assert torch.equal(following.masks[index, 0], own.logits[index, best[index]])
    assert clicks > 20


def test_without_objects_a_box_is_around_the_teacher_s_mask_at_a_point(predictor: Predictor) -> None:
    spy = Spy(predictor)
    shown = Shown(["a", "b", "c"], SIZES, [None] * 3, 0)
    objective(spy, prompts=4, rounds=0).added(STUDENT, TEACHER, torch.ones(3), shown)
    (asked, answer), (boxes, _), *_ = spy.asked
    assert asked.boxes is None
    assert boxes.boxes is not None
    assert boxes.points.shape[1] == 0
    assert torch.equal(asked.images, boxes.images)
    seen = 0
    for index, image in enumerate(asked.images.tolist()):
        height, width = SIZES[image].tolist()
        assert (asked.points[index, 0] <= torch.tensor([width, height])).all()
        mask = answer.logits[index, answer.ious[index].argmax()][: height // 4, : width // 4] > 0
        if mask.any():
            seen += 1
            rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
            expected = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) * 4
            assert torch.equal(boxes.boxes[index], expected.float())
        else:
            assert (boxes.boxes[index, 2:] - boxes.boxes[index, :2]).tolist() == pytest.approx([width / 8, height / 8])
    assert seen


def _valid() -> torch.Tensor:
    return torch.ones(3, CELLS, CELLS, dtype=torch.bool)
