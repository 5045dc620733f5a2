import pytest
import torch

from efficientsam3.checkpoints.standardisation import Standardisation
from efficientsam3.runtime.errors import UserError
from efficientsam3.train.objective import (
    TERMS,
    FeatureObjective,
    Term,
    masked_attention,
    masked_cosine,
    masked_edges,
    masked_gradient,
    masked_mse,
    masked_multiscale,
    masked_relation,
)

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


def test_gradient_is_the_error_of_the_differences_of_neighbours() -> None:
    result = masked_gradient(STUDENT, TEACHER, VALID)
    error = STUDENT - TEACHER
    right, below = error[0, :, :, 1:] - error[0, :, :, :-1], error[0, :, 1:] - error[0, :, :-1]
    by_hand = torch.cat([right.flatten(1), below.flatten(1)], dim=1).square().mean()  # 6 pairs each
    assert result[0].item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert result[1].item() == pytest.approx((error[1, :, 1, 0] - error[1, :, 0, 0]).square().mean().item(), rel=1e-5)
    torch.testing.assert_close(masked_gradient(STUDENT + 3, TEACHER, VALID), result, rtol=1e-4, atol=1e-5)
    assert masked_gradient(STUDENT, TEACHER, _only_the_first_cell())[0].item() == 0, "there is no pair"


def test_edges_count_for_more_where_the_teacher_changes() -> None:
    teacher = torch.zeros(2, 5, 3, 3)
    teacher[0, :, :, 2] = (
        6.0  # 36 between the last two columns: 12 of 3 neighbours or 9 of 4, 18 of 2 or 12 of 3, else 0
    )
    change = torch.tensor([[0.0, 12, 18], [0, 9, 12], [0, 12, 18]])
    weights = change / change.mean()
    student = teacher + torch.arange(9.0).reshape(3, 3)
    result = masked_edges(student, teacher, torch.ones(2, 3, 3, dtype=torch.bool))
    error = torch.arange(9.0).reshape(3, 3).square()
    assert result.tolist() == pytest.approx([(weights * error).mean().item(), error.mean().item()])
    alone = masked_edges(STUDENT, TEACHER, _only_the_first_cell())
    torch.testing.assert_close(alone, masked_mse(STUDENT, TEACHER, _only_the_first_cell()))


def test_multiscale_is_the_error_of_pooled_features() -> None:
    student, teacher = _features(8), _features(8)
    valid = torch.ones(2, 8, 8, dtype=torch.bool)
    valid[1, 3:] = False
    result = masked_multiscale(student, teacher, valid)
    error = student - teacher
    two, four = (torch.nn.functional.avg_pool2d(error[:1], side).square().mean().item() for side in (2, 4))
    assert result[0].item() == pytest.approx((two + four) / 2, rel=1e-5)
    # Of the second image three rows are left: a square of 2 has them all or the first of them; one of 4 has all three.
    rows = [error[1, :, :2].reshape(5, 2, 4, 2).mean(dim=(1, 3)), error[1, :, 2].reshape(5, 4, 2).mean(dim=2)]
    two = (2 * rows[0].square().mean() + rows[1].square().mean()).item() / 3
    four = error[1, :, :3].reshape(5, 3, 2, 4).mean(dim=(1, 3)).square().mean().item()
    assert result[1].item() == pytest.approx((two + four) / 2, rel=1e-5)


def test_multiscale_takes_grids_of_any_side() -> None:
    result = masked_multiscale(_features(5) + 1, _features(5), torch.ones(2, 5, 5, dtype=torch.bool))
    assert result.isfinite().all()
    moved = masked_multiscale(STUDENT + 2, STUDENT, VALID)
    torch.testing.assert_close(moved, torch.full((2,), 4.0), rtol=1e-4, atol=1e-4)


def test_relation_compares_every_two_valid_cells() -> None:
    result = masked_relation(STUDENT, TEACHER, VALID)

    def similarities(cells: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cosine_similarity(cells[:, :, None], cells[:, None], dim=0)

    for image, chosen in ((0, slice(None)), (1, [0, 3])):
        pairs = [similarities(each[image].flatten(1)[:, chosen]) for each in (STUDENT, TEACHER)]
        assert result[image].item() == pytest.approx((pairs[0] - pairs[1]).square().mean().item(), rel=1e-4)
    # A rotation of the channels changes no similarity.
    turned = torch.linalg.qr(torch.randn(5, 5, generator=GENERATOR))[0]
    assert masked_relation(torch.einsum("dc,bcij->bdij", turned, TEACHER), TEACHER, VALID).max().item() < 1e-6


def test_relation_of_a_large_grid_takes_16_cells_a_side() -> None:
    student, teacher, valid = _features(64), _features(64), torch.ones(2, 64, 64, dtype=torch.bool)
    chosen = (slice(None), slice(None), slice(2, None, 4), slice(2, None, 4))
    expected = masked_relation(student[chosen], teacher[chosen], valid[:, 2::4, 2::4])
    torch.testing.assert_close(masked_relation(student, teacher, valid), expected)
    assert masked_relation(student, teacher, _only_the_first_cell(64)).tolist() == [0, 0], "it is not among them"


def test_attention_compares_where_the_energy_is() -> None:
    result = masked_attention(STUDENT, TEACHER, VALID)
    for image, chosen in ((0, slice(None)), (1, [0, 3])):
        maps = [each[image].flatten(1)[:, chosen].square().sum(dim=0) for each in (STUDENT, TEACHER)]
        difference = maps[0] / maps[0].norm() - maps[1] / maps[1].norm()
        assert result[image].item() == pytest.approx(difference.square().sum().item(), rel=1e-4)
    torch.testing.assert_close(masked_attention(3 * STUDENT, TEACHER, VALID), result)


@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_0_for_the_teacher_falls_along_its_gradient_and_is_finite_for_zeros(name: str) -> None:
    term: Term = TERMS[name]
    assert term(TEACHER, TEACHER, VALID).abs().max().item() < 1e-6
    student = STUDENT.double().requires_grad_()
    before = term(student, TEACHER.double(), VALID).sum()
    (gradient,) = torch.autograd.grad(before, student)
    assert gradient[1, :, 2].abs().max().item() == 0, "padding learns nothing"
    assert gradient[0].abs().max().item() > 0
    after = term(student - 1e-2 * gradient, TEACHER.double(), VALID).sum()
    assert after.item() < before.item()
    zeros = torch.zeros_like(STUDENT, requires_grad=True)
    (gradient,) = torch.autograd.grad(term(zeros, TEACHER, VALID).sum(), zeros)
    assert gradient.isfinite().all()


def _features(side: int) -> torch.Tensor:
    return torch.randn(2, 5, side, side, generator=GENERATOR)


def _only_the_first_cell(side: int = 3) -> torch.Tensor:
    valid = torch.zeros(2, side, side, dtype=torch.bool)
    valid[:, 0, 0] = True
    return valid


@pytest.mark.parametrize("name", TERMS)
def test_what_lies_in_the_padding_does_not_matter(name: str) -> None:
    spoilt = torch.where(VALID[:, None], STUDENT, 1e6)
    torch.testing.assert_close(TERMS[name](spoilt, TEACHER, VALID), TERMS[name](STUDENT, TEACHER, VALID))


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


@pytest.mark.parametrize("standardisation", [None, Standardisation(torch.ones(5), torch.full((5,), 2.0))])
def test_padding_is_learnt_where_it_is_asked_for_and_never_recorded(standardisation: Standardisation | None) -> None:
    everything, weights = torch.ones_like(VALID), {"mse": 2.0, "cosine": 3.0}
    masked, wanted = (
        FeatureObjective(weights, standardisation)(STUDENT, TEACHER, v, torch.ones(2)) for v in (VALID, everything)
    )
    found = FeatureObjective(weights, standardisation, padding=True)(STUDENT, TEACHER, VALID, torch.ones(2))
    assert found.pop("loss").item() == pytest.approx(wanted["loss"].item())
    assert found == {name: masked[name] for name in weights}


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        ({"mse": 1.0, "huber": 1.0}, "'huber' is not a loss term: use attention, cosine, edges, gradient, mse, "),
        ({"mse": 0.0}, "weight 0"),
    ],
)
def test_weights_that_make_no_loss_are_refused(weights: dict[str, float], named: str) -> None:
    with pytest.raises(UserError, match=named):
        FeatureObjective(weights)
