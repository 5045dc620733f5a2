from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from efficientsam3.train.optimizer import build_optimizer, learning_rate_factor, scale_learning_rate


@pytest.mark.parametrize(("rule", "expected"), [("linear", 7.8125e-6), ("sqrt", 8.8388e-5), ("none", 1e-3)])
def test_scaling_rules(rule: str, expected: float) -> None:
    assert scale_learning_rate(1e-3, 4, rule) == pytest.approx(expected, rel=1e-4)
    assert scale_learning_rate(1e-3, 512, rule) == 1e-3


@given(st.integers(0, 50), st.integers(1, 200), st.floats(0, 1))
def test_the_rate_rises_to_one_and_falls_to_the_floor(warmup: int, rest: int, floor: float) -> None:
    total = warmup + rest
    factors = [learning_rate_factor(step, total, warmup, floor) for step in range(total + 1)]
    assert factors[:warmup] == pytest.approx([(step + 1) / warmup for step in range(warmup)])
    assert factors[warmup] == pytest.approx(1)
    falling = factors[warmup:]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(falling))
    assert factors[total] == pytest.approx(floor)


def test_norms_and_biases_do_not_decay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    decayed, free = build_optimizer(model, 0.1, 0.5).param_groups
    assert {id(p) for p in decayed["params"]} == {id(model[0].weight), id(model[2].weight)}
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.5, 0.0)
    assert len(free["params"]) == 4


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    groups = build_optimizer(model, torch.pi, 0.0).param_groups
    assert [len(group["params"]) for group in groups] == [1, 0]
