"""Steps that are skipped: how they are counted, and what they leave behind."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from efficientsam3.runtime.errors import UserError
from efficientsam3.train.finite import FiniteWatch, StatisticsGuard


def test_ten_steps_in_a_row_are_too_many_wherever_the_looks_fall() -> None:
    watch = FiniteWatch()
    for step in range(30):
        watch.note(step, ["sa_1"], torch.tensor(step not in (5, 14)))
        if step % 4 == 0 and step <= 20:
            watch.look()
    assert watch.skipped == 19
    assert watch.in_a_row == 6
    with pytest.raises(UserError, match=r"10 steps in a row.*sa_1"):
        watch.look()


class _CountOperations(TorchDispatchMode):
    """Counts operations on tensors, leaving out those that only view one."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("bad", [False, True])
def test_statistics_of_a_skipped_step_are_put_back_in_a_few_operations_however_many_they_are(bad: bool) -> None:
    """A GPU takes longer to start an operation than to copy some thousand numbers."""
    model = nn.Sequential(*(nn.BatchNorm2d(channels) for channels in range(1, 51)), nn.Flatten())
    guard, skipped = StatisticsGuard(model), torch.tensor(bad)
    for number in (1.0, 2.0):
        for norm in model[:-1]:
            norm.running_mean.fill_(number)
            norm.running_var.fill_(number + 10)
        with _CountOperations() as counted:
            guard.keep()
        assert counted.count == 1
    for norm in model[:-1]:
        norm.running_mean.fill_(torch.nan)
        norm.running_var.fill_(torch.inf)
        norm.num_batches_tracked.fill_(7)
    with _CountOperations() as counted:
        guard.restore(skipped)
    assert counted.count == 3  # join, choose, copy back
    for norm in model[:-1]:
        found = torch.stack([norm.running_mean, norm.running_var])
        expected = torch.tensor([2.0, 12.0] if bad else [torch.nan, torch.inf])[:, None].expand_as(found)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        assert norm.num_batches_tracked == 7


def test_a_model_without_statistics_needs_no_guard() -> None:
    guard = StatisticsGuard(nn.Linear(2, 2))
    guard.keep()
    guard.restore(torch.tensor(True))
