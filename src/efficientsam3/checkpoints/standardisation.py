"""Standardised targets: what a student that was trained against them needs in order to give the teacher's features.

A student's last convolution is followed by nothing but a bilinear resize, whose weights sum to 1. So an affine map of
each channel of its output can be folded into that convolution, exactly.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch

from efficientsam3.checkpoints.student_keys import output_prefix

State = dict[str, torch.Tensor]
# Channels that vary less than this part of the channels' root mean square deviation are not blown up to unit variance.
SMALLEST_DEVIATION = 1e-2


@dataclass(frozen=True)
class Standardisation:
    """Mean and standard deviation of each of the teacher's channels."""

    mean: torch.Tensor  # (D,) float32
    std: torch.Tensor  # (D,) float32, positive

    @classmethod
    def of(cls, mean: torch.Tensor, variance: torch.Tensor) -> Self:
        """From (D,) moments; deviations are at least `SMALLEST_DEVIATION` of their root mean square."""
        least = SMALLEST_DEVIATION * float(variance.mean()) ** 0.5
        return cls(mean.float(), variance.sqrt().clamp(min=max(least, torch.finfo(torch.float32).tiny)).float())

    def to(self, device: torch.device) -> "Standardisation":
        """The same on `device`."""
        return Standardisation(self.mean.to(device), self.std.to(device))

    def standardise(self, features: torch.Tensor) -> torch.Tensor:
        """(B, D, H, W) float, the teacher's features, to zero mean and unit variance, float32."""
        return (features.float() - self.mean[:, None, None]) / self.std[:, None, None]

    def restore(self, features: torch.Tensor) -> torch.Tensor:
        """The inverse of `standardise`."""
        return features.float() * self.std[:, None, None] + self.mean[:, None, None]

    def fold(self, state: Mapping[str, torch.Tensor]) -> State:
        """A student's state dict that gives raw features, from one that gives standardised ones."""
        return _map_output(state, self.std.double(), self.mean.double())

    def unfold(self, state: Mapping[str, torch.Tensor]) -> State:
        """The inverse of `fold`."""
        std = self.std.double()
        return _map_output(state, 1 / std, -self.mean.double() / std)


def _map_output(state: Mapping[str, torch.Tensor], scale: torch.Tensor, shift: torch.Tensor) -> State:
    """Let the last convolution give `scale` * output + `shift`, (D,) each, computed in float64."""
    prefix = output_prefix(state)
    weight, bias = state[f"{prefix}weight"], state[f"{prefix}bias"]
    return dict(state) | {
        f"{prefix}weight": (weight.double() * scale[:, None, None, None]).to(weight.dtype),
        f"{prefix}bias": (bias.double() * scale + shift).to(bias.dtype),
    }
