import pytest
import torch

from efficientsam3.checkpoints.standardisation import Standardisation
from efficientsam3.train.objective import distillation_loss, masked_cosine, masked_mse

GENERATOR = torch.Generator().manual_seed(0)
STUDENT = torch.randn(2, 5, 3, 3, generator=GENERATOR)
TEACHER = torch.randn(2, 5, 3, 3, generator=GENERATOR)
VALID = torch.zeros(2, 3, 3, dtype=torch.bool)
VALID[0] = True
VALID[1, :2, 0] = True


def test_mse_is_the_mean_over_channels_and_valid_cells_of_each_image() -> None:
    result = masked_mse(STUDENT, TEACHER, VALID)
    difference = (STUDENT - TEACHER).square()
    assert result[0].item() == pytest.approx(difference[0].mean().item())
    assert result[1].item() == pytest.approx(difference[1][:, :2, 0].mean().item())


def test_cosine_is_the_mean_over_valid_cells() -> None:
    result = masked_cosine(STUDENT, TEACHER, VALID)
    cells = [(STUDENT[1, :, row, 0], TEACHER[1, :, row, 0]) for row in range(2)]
    by_hand = sum(1 - (a @ b / a.norm() / b.norm()).item() for a, b in cells) / 2
    assert result[1].item() == pytest.approx(by_hand, rel=1e-5)


def test_what_lies_in_the_padding_does_not_matter() -> None:
    spoilt = torch.where(VALID[:, None], STUDENT, 1e6)
    for loss in (masked_mse, masked_cosine):
        torch.testing.assert_close(loss(spoilt, TEACHER, VALID), loss(STUDENT, TEACHER, VALID))


def test_the_total_is_weighted_and_stand_ins_do_not_count() -> None:
    both = distillation_loss(STUDENT, TEACHER, VALID, torch.ones(2), 2.0, 3.0)
    assert both.total.item() == pytest.approx(2 * both.mse.item() + 3 * both.cosine.item())
    first = distillation_loss(STUDENT, TEACHER, VALID, torch.tensor([1.0, 0.0]), 2.0, 3.0)
    assert first.mse.item() == pytest.approx(masked_mse(STUDENT, TEACHER, VALID)[0].item())
    none = distillation_loss(STUDENT, TEACHER, VALID, torch.zeros(2), 2.0, 3.0)
    assert none.total.item() == 0


def test_a_perfect_student_has_no_loss() -> None:
    loss = distillation_loss(TEACHER, TEACHER, VALID, torch.ones(2), 1.0, 1.0)
    assert loss.mse.item() == 0
    assert loss.cosine.item() == pytest.approx(0, abs=1e-6)


def test_with_standardised_targets_only_the_total_is_theirs() -> None:
    standardisation = Standardisation(torch.linspace(-1, 2, 5), torch.linspace(0.5, 3, 5))
    raw = distillation_loss(standardisation.restore(STUDENT), TEACHER, VALID, torch.ones(2), 2.0, 3.0)
    target = standardisation.standardise(TEACHER)
    standardised = distillation_loss(STUDENT, target, VALID, torch.ones(2), 2.0, 3.0)
    found = distillation_loss(STUDENT, TEACHER, VALID, torch.ones(2), 2.0, 3.0, standardisation)
    assert found.total.item() == pytest.approx(standardised.total.item())
    assert (found.mse.item(), found.cosine.item()) == pytest.approx((raw.mse.item(), raw.cosine.item()))
    assert found.total.item() != pytest.approx(raw.total.item(), rel=1e-2)
