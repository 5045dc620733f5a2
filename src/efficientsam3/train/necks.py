"""Necks of SAM3 that are trained with the student."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from efficientsam3.checkpoints.fitting import differences, layouts
from efficientsam3.checkpoints.necks import NECK_PREFIXES, NeckName, is_trained_layer, neck_names
from efficientsam3.train.objective import NO_NECKS, Necks


@dataclass(frozen=True)
class NeckPlan:
    """A neck to train."""

    own: nn.Module  # SAM3's, frozen, on the CPU
    origin: str  # `digest_neck` of it
    rate: float  # its learning rate, as a share of the student's


class StudentWithNecks(nn.Module):
    """A student and the necks that are trained with it, as one module to optimise and to average.

    The objective uses the necks outside of `forward`. DistributedDataParallel adds their gradients up all the same,
    because it waits for each parameter's gradient and not for outputs.
    """

    def __init__(self, student: nn.Module, necks: Mapping[NeckName, nn.Module]) -> None:
        """Put them together."""
        super().__init__()
        self.student = student
        self.necks = nn.ModuleDict({str(name): neck for name, neck in necks.items()})

    def forward(self, pixel_values: torch.Tensor) -> Any:
        """As the student."""
        return self.student(pixel_values)


def student_of(module: nn.Module) -> nn.Module:
    """The student alone."""
    return module.student if isinstance(module, StudentWithNecks) else module


def necks_of(module: nn.Module) -> Necks:
    """The necks that are trained with the student, by their names."""
    return dict(module.necks.items()) if isinstance(module, StudentWithNecks) else NO_NECKS


def necks_state(necks: Necks) -> dict[str, torch.Tensor]:
    """What is trained of them, under facebook's keys."""
    return {key: value.detach().cpu() for key, value in _trained(necks).items()}


def load_necks(necks: Necks, state: Mapping[str, torch.Tensor]) -> None:
    """Put in what `necks_state` gave.

    Raises:
        ValueError: it is of other necks.
    """
    own = _trained(necks)
    if wrong := differences(layouts(state), layouts(own)):
        raise ValueError(wrong)
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(state[key])


def _trained(necks: Necks) -> dict[str, torch.Tensor]:
    names: list[NeckName] = neck_names(necks)
    return {
        NECK_PREFIXES[name] + key: value
        for name in names
        for key, value in necks[name].state_dict().items()
        if is_trained_layer(key)
    }
