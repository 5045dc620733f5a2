"""Standardised targets: folding them into the last convolution changes nothing but what it gives."""

import pytest
import torch

from efficientsam3.checkpoints.standardisation import SMALLEST_DEVIATION, Standardisation
from efficientsam3.models.heads import HEADS
from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.models.student_files import to_published_layout

DIM = 8
OUTPUT = {name: head.output for name, head in HEADS.items()}
STANDARDISATION = Standardisation(torch.linspace(-5, 9, DIM), torch.logspace(-1, 1, DIM))


def student(head: str) -> Student:
    """Its published head gives 7 x 7 cells, which are resized to 16 x 16."""
    torch.manual_seed(0)
    return Student(StudentArchitecture("efficientvit_b0", DIM, 16, 224, head)).eval()


@pytest.mark.parametrize("head", HEADS)
@torch.inference_mode()
def test_the_folded_student_gives_restored_features(head: str) -> None:
    plain, pixels = student(head), torch.randn(2, 3, 224, 224)
    folded = student(head)
    folded.load_state_dict(STANDARDISATION.fold(plain.state_dict(), OUTPUT[head]))
    expected = STANDARDISATION.restore(plain(pixels))
    assert expected.std() > 2  # so that it is not the same anyway
    torch.testing.assert_close(folded(pixels), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_unfolding_takes_it_back(head: str) -> None:
    state = student(head).state_dict()
    again = STANDARDISATION.unfold(STANDARDISATION.fold(state, OUTPUT[head]), OUTPUT[head])
    assert again.keys() == state.keys()
    for key, value in state.items():
        torch.testing.assert_close(again[key], value, rtol=1e-6, atol=1e-5)


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
