from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from efficientsam3.train.optimizer import (
    build_optimizer,
    learning_rate_factor,
    restore_optimizer,
    scale_learning_rate,
)


@pytest.mark.parametrize(("rule", "expected"), [("linear", 7.8125e-6), ("sqrt", 8.8388e-5), ("none", 1e-3)])
def test_scaling_rules(rule: str, expected: float) -> None:
    assert scale_learning_rate(1e-3, 4, 99, rule) == pytest.approx(expected, rel=1e-4)
    assert scale_learning_rate(1e-3, 512, 99, rule) == 1e-3


@pytest.mark.parametrize(
    ("steps", "expected"), [(0, 4e-3), (1, 4e-3), (16, 4e-3), (64, 2e-3), (250, 1.0119e-3), (256, 1e-3), (10**6, 1e-3)]
)
def test_few_steps_are_larger(steps: int, expected: float) -> None:
    for batch in (2, 512, 8192):
        assert scale_learning_rate(1e-3, batch, steps, "steps") == pytest.approx(expected, rel=1e-4)


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


def test_what_is_configured_anew_holds_and_moments_go_on() -> None:
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    before = build_optimizer(model, 0.1, 0.5, scaled=[(other, 0.1)])
    (model(torch.ones(1, 2)) + other(torch.ones(1, 2))).sum().backward()
    before.step()
    after = build_optimizer(model, 0.1, 0.2, scaled=[(other, 0.3)])
    restore_optimizer(after, before.state_dict())
    assert [group["weight_decay"] for group in after.param_groups] == [0.2, 0.0, 0.2, 0.0]
    assert [group.get("lr_scale") for group in after.param_groups] == [None, None, 0.3, 0.3]
    assert all(map(torch.equal, _moments(after, other.weight), _moments(before, other.weight)))


LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize(("saved", "loaded"), [LAYOUTS, LAYOUTS[::-1]])
def test_moments_take_the_layout_of_the_parameters(saved: torch.memory_format, loaded: torch.memory_format) -> None:
    """Parameters are channels_last on CUDA alone, so what was saved there and is loaded elsewhere, or the other way."""

    def step(layout: torch.memory_format, state: dict[str, Any] | None = None) -> tuple[torch.Tensor, dict[str, Any]]:
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 3).to(memory_format=layout)  # type: ignore[call-overload]
        optimizer = build_optimizer(model, 0.1, 0.0)
        if state is not None:
            restore_optimizer(optimizer, state)
            assert {value.stride() for value in _moments(optimizer, model.weight)} == {model.weight.stride()}
        model(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        return model.weight.detach(), optimizer.state_dict()

    _, before = step(saved)
    expected, _ = step(saved, before)
    found, _ = step(loaded, before)
    torch.testing.assert_close(found, expected)


def _moments(optimizer: torch.optim.AdamW, parameter: torch.Tensor) -> list[torch.Tensor]:
    return [optimizer.state[parameter][name] for name in ("exp_avg", "exp_avg_sq")]
