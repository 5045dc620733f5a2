"""Standardised targets: folding them into the last convolution changes nothing but what it gives."""

import pytest
import torch

from efficientsam3.checkpoints.standardisation import SMALLEST_DEVIATION, Standardisation
from efficientsam3.models.heads import HEADS
from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.models.student_files import to_published_layout
from efficientsam3.runtime.errors import UserError

DIM = 8
OUTPUT = {name: head.output for name, head in HEADS.items()}
GENERATOR = torch.Generator().manual_seed(3)
MIXED = torch.randn(DIM, DIM, generator=GENERATOR, dtype=torch.float64) * torch.logspace(-0.2, 0.5, DIM)[:, None]
MOMENTS = (torch.linspace(-5, 9, DIM, dtype=torch.float64), MIXED @ MIXED.T)  # mean and covariance
KINDS = {
    "channel": Standardisation(torch.linspace(-5, 9, DIM), torch.logspace(-1, 1, DIM)),
    "phi-s": Standardisation.phi_s(*MOMENTS),
    "whiten": Standardisation.white(*MOMENTS),
}
STANDARDISATION = KINDS["channel"]


def student(head: str) -> Student:
    """Its published head gives 7 x 7 cells, which are resized to 16 x 16."""
    torch.manual_seed(0)
    return Student(StudentArchitecture("efficientvit_b0", DIM, 16, 224, head)).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", HEADS)
@torch.inference_mode()
def test_the_folded_student_gives_restored_features(head: str, kind: str) -> None:
    plain, pixels = student(head), torch.randn(2, 3, 224, 224)
    folded = student(head)
    folded.load_state_dict(KINDS[kind].fold(plain.state_dict(), OUTPUT[head]))
    expected = KINDS[kind].restore(plain(pixels))
    assert expected.std() > 2  # so that it is not the same anyway
    torch.testing.assert_close(folded(pixels), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", HEADS)
def test_unfolding_takes_it_back(head: str, kind: str) -> None:
    state = student(head).state_dict()
    again = KINDS[kind].unfold(KINDS[kind].fold(state, OUTPUT[head]), OUTPUT[head])
    assert again.keys() == state.keys()
    for key, value in state.items():
        torch.testing.assert_close(again[key], value, rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize("kind", ["phi-s", "whiten"])
def test_rotated_features_have_unit_variance_and_come_back(kind: str) -> None:
    factor = torch.linalg.cholesky(MOMENTS[1])
    noise = torch.linalg.qr(torch.randn(400, DIM, generator=GENERATOR, dtype=torch.float64))[0] * 400**0.5
    noise -= noise.mean(dim=0)
    cells = (noise @ factor.T + MOMENTS[0]).T.reshape(1, DIM, 20, 20)
    kept = Standardisation.phi_s if kind == "phi-s" else Standardisation.white
    flat = cells[0].flatten(1)
    found = kept(flat.mean(dim=1), torch.cov(flat, correction=0))
    standardised = found.standardise(cells)
    rows = standardised[0].flatten(1)
    torch.testing.assert_close(rows.mean(dim=1), torch.zeros(DIM), rtol=0, atol=1e-4)
    torch.testing.assert_close(rows.var(dim=1, correction=0), torch.ones(DIM), rtol=1e-3, atol=0)
    torch.testing.assert_close(found.restore(standardised), cells.float(), rtol=1e-4, atol=1e-4)
    if kind == "whiten":
        torch.testing.assert_close(torch.cov(rows, correction=0), torch.eye(DIM), rtol=0, atol=2e-3)
    else:  # the squared error is the raw one, but for a factor
        moved = cells + torch.randn(cells.shape, generator=GENERATOR)
        raw = (moved - cells).square().mean() / MOMENTS[1].diagonal().mean()
        error = (found.standardise(moved) - standardised).square().mean().item()
        variance = torch.cov(flat, correction=0).diagonal().mean() / MOMENTS[1].diagonal().mean()
        assert error == pytest.approx((raw / variance).item(), rel=1e-3)


def test_directions_that_hardly_vary_are_clamped() -> None:
    variance = torch.tensor([4.0, 4.0, 0.0, -1e-12], dtype=torch.float64)
    std = Standardisation.white(torch.zeros(4, dtype=torch.float64), torch.diag(variance)).std
    assert sorted(std.tolist()) == pytest.approx([*2 * [SMALLEST_DEVIATION * 2**0.5], 2, 2])


def test_phi_s_needs_a_power_of_2() -> None:
    with pytest.raises(UserError, match=r"power of 2, and the teacher has 12: use whiten or channel"):
        Standardisation.phi_s(torch.zeros(12), torch.eye(12))


@pytest.mark.parametrize("kind", KINDS)
def test_a_rotation_is_kept_under_names_that_earlier_versions_do_not_read(kind: str) -> None:
    state = KINDS[kind].state_dict()
    assert ("std" in state) == (kind == "channel")
    again = Standardisation.from_state(state)
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(again.state_dict()[key], value) for key, value in state.items())


def test_the_published_layout_folds_as_well() -> None:
    state = student("published").state_dict()
    folded = STANDARDISATION.fold(to_published_layout(state, "efficientvit_b0"), OUTPUT["published"])
    expected = to_published_layout(STANDARDISATION.fold(state, OUTPUT["published"]), "efficientvit_b0")
    assert all(torch.equal(folded[key], value) for key, value in expected.items())


def test_channels_that_hardly_vary_are_clamped() -> None:
    variance = torch.tensor([4.0, 1e-12, 0.0, 4.0], dtype=torch.float64)
    std = Standardisation.of(torch.zeros(4, dtype=torch.float64), variance).std
    assert std.tolist() == pytest.approx([2, *2 * [SMALLEST_DEVIATION * 2**0.5], 2])
    constant = Standardisation.of(torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    assert torch.equal(constant.standardise(torch.ones(1, 3, 2, 2)), torch.zeros(1, 3, 2, 2))
