"""Sums of whatever losses an objective names."""

import pytest
import torch

from efficientsam3.train.sums import LossSums

CPU = torch.device("cpu")


def losses(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_averages_are_over_images_and_leave_out_batches_that_are_not_finite() -> None:
    sums = LossSums(CPU)
    assert sums.averages() == {}
    sums.add(losses(loss=1.0, masks=4.0), torch.ones(3))
    sums.add(losses(loss=torch.nan, masks=9.0), torch.ones(2))
    sums.add(losses(loss=2.0, masks=0.0), torch.tensor([1.0, 0.0]))
    assert sums.averages() == {"loss": 5 / 4, "masks": 12 / 4}


def test_saved_sums_continue_whoever_saved_them() -> None:
    sums = LossSums(CPU)
    sums.add(losses(loss=1.0, masks=4.0), torch.ones(3))
    saved = sums.state_dict()
    assert {name: value.item() for name, value in saved.items()} == {"loss": 3, "masks": 12, "count": 3}
    for states, factor in (([saved], 1), ([saved, saved], 2), ([saved, LossSums(CPU).state_dict()], 1)):
        continued = LossSums.from_states(states, CPU)
        assert continued.state_dict()["loss"].item() == 3 * factor
        continued.add(losses(loss=2.0, masks=0.0), torch.ones(3 * factor))
        assert continued.averages() == {"loss": 1.5, "masks": 2.0}
    assert LossSums.from_states([], CPU).averages() == {}


def test_the_vectors_of_older_checkpoints_are_read() -> None:
    old = torch.tensor([6.0, 4.0, 2.0, 2.0])  # loss, mse and cosine of two images, and their number
    assert LossSums.from_states([old], CPU).averages() == {"loss": 3, "mse": 2, "cosine": 1}
    both = LossSums.from_states([old, old], CPU)
    both.add(losses(loss=0.0, mse=0.0, cosine=0.0), torch.ones(4))
    assert both.averages() == pytest.approx({"loss": 1.5, "mse": 1, "cosine": 0.5})


def test_losses_that_have_changed_start_again_and_another_order_does_not(caplog: pytest.LogCaptureFixture) -> None:
    sums = LossSums(CPU)
    sums.add(losses(loss=1.0, masks=4.0), torch.ones(3))
    continued = LossSums.from_states([sums.state_dict()], CPU)
    continued.add(losses(masks=0.0, loss=2.0), torch.ones(3))
    assert continued.averages() == {"loss": 1.5, "masks": 2.0}
    continued.add(losses(loss=5.0, boxes=1.0), torch.ones(1))
    assert continued.averages() == {"loss": 5, "boxes": 1}
    assert "begin here" in caplog.text
