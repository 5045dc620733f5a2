import pytest
import torch

from efficientsam3.checkpoints.standardisation import Standardisation
from efficientsam3.runtime.errors import UserError
from efficientsam3.train.objective import FeatureObjective, masked_cosine, masked_mse

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
    objective = FeatureObjective({"mse": 2.0, "cosine": 3.0})
    both = objective(STUDENT, TEACHER, VALID, torch.ones(2))
    assert list(both) == ["loss", "mse", "cosine"]
    assert both["loss"].item() == pytest.approx(2 * both["mse"].item() + 3 * both["cosine"].item())
    first = objective(STUDENT, TEACHER, VALID, torch.tensor([1.0, 0.0]))
    assert first["mse"].item() == pytest.approx(masked_mse(STUDENT, TEACHER, VALID)[0].item())
    none = objective(STUDENT, TEACHER, VALID, torch.zeros(2))
    assert none["loss"].item() == 0


def test_a_perfect_student_has_no_loss() -> None:
    loss = FeatureObjective({"mse": 1.0, "cosine": 1.0})(TEACHER, TEACHER, VALID, torch.ones(2))
    assert loss["mse"].item() == 0
    assert loss["cosine"].item() == pytest.approx(0, abs=1e-6)


def test_with_standardised_targets_only_the_total_is_theirs() -> None:
    weights = {"mse": 2.0, "cosine": 3.0}
    standardisation = Standardisation(torch.linspace(-1, 2, 5), torch.linspace(0.5, 3, 5))
    raw = FeatureObjective(weights)(standardisation.restore(STUDENT), TEACHER, VALID, torch.ones(2))
    target = standardisation.standardise(TEACHER)
    standardised = FeatureObjective(weights)(STUDENT, target, VALID, torch.ones(2))
    found = FeatureObjective(weights, standardisation)(STUDENT, TEACHER, VALID, torch.ones(2))
    assert found["loss"].item() == pytest.approx(standardised["loss"].item())
    assert (found["mse"].item(), found["cosine"].item()) == pytest.approx((raw["mse"].item(), raw["cosine"].item()))
    assert found["loss"].item() != pytest.approx(raw["loss"].item(), rel=1e-2)


@pytest.mark.parametrize(
    ("weights", "named"),
    [({"mse": 1.0, "huber": 1.0}, "'huber' is not a loss term: use cosine, mse"), ({"mse": 0.0}, "weight 0")],
)
def test_weights_that_make_no_loss_are_refused(weights: dict[str, float], named: str) -> None:
    with pytest.raises(UserError, match=named):
        FeatureObjective(weights)
