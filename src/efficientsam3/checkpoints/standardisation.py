"""Standardised targets: each channel of the teacher's features scaled to zero mean and unit variance.

A student trained against them gives standardised features. Its last convolution is followed by nothing but a bilinear
resize, whose weights sum to 1, so the inverse map of each channel can be folded into that convolution exactly.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch

from efficientsam3.checkpoints.reading import StateDict

# A channel's deviation is taken to be at least this part of the root mean square over channels, so that channels which
# hardly vary are not scaled up to unit variance.
SMALLEST_DEVIATION = 1e-2


@dataclass(frozen=True)
class Standardisation:
    """Mean and standard deviation of each of the teacher's channels."""

    mean: torch.Tensor  # (D,) float32
    std: torch.Tensor  # (D,) float32, positive

    @classmethod
    def of(cls, mean: torch.Tensor, variance: torch.Tensor) -> Self:
        """Compute from (D,) moments; deviations are clamped to `SMALLEST_DEVIATION` of their root mean square."""
        least = SMALLEST_DEVIATION * float(variance.mean()) ** 0.5
        return cls(mean.float(), variance.sqrt().clamp(min=max(least, torch.finfo(torch.float32).tiny)).float())

    def to(self, device: torch.device) -> "Standardisation":
        """A copy on `device`."""
        return Standardisation(self.mean.to(device), self.std.to(device))

    def standardise(self, features: torch.Tensor) -> torch.Tensor:
        """Map the teacher's features, (B, D, H, W) float, to zero mean and unit variance, in float32."""
        return (features.float() - self.mean[:, None, None]) / self.std[:, None, None]

    def restore(self, features: torch.Tensor) -> torch.Tensor:
        """Undo `standardise`."""
        return features.float() * self.std[:, None, None] + self.mean[:, None, None]

    def fold(self, state: Mapping[str, torch.Tensor], output: str) -> StateDict:
        """Turn the weights of a student that gives standardised features into those of one that gives raw features.

        Args:
            state: its state dict.
            output: what the keys of its last convolution start with, see `models.heads.output_prefix`.
        """
        return _map_output(state, output, self.std.double(), self.mean.double())

    def unfold(self, state: Mapping[str, torch.Tensor], output: str) -> StateDict:
        """Undo `fold`."""
        std = self.std.double()
        return _map_output(state, output, 1 / std, -self.mean.double() / std)


def _map_output(state: Mapping[str, torch.Tensor], prefix: str, scale: torch.Tensor, shift: torch.Tensor) -> StateDict:
    """Let the last convolution give `scale` * output + `shift`, (D,) each, computed in float64."""
    weight, bias = state[f"{prefix}weight"], state[f"{prefix}bias"]
    return dict(state) | {
        f"{prefix}weight": (weight.double() * scale[:, None, None, None]).to(weight.dtype),
        f"{prefix}bias": (bias.double() * scale + shift).to(bias.dtype),
    }
