"""Standardised targets: each channel of the teacher's features scaled to zero mean and unit variance.

The channels may be rotated first: to their principal components, which are then white, or on from there by a Hadamard
matrix, by which all have the same variance (PHI-S, Ranzinger et al. 2024, arXiv:2410.01680).

A student trained against them gives standardised features. Its last convolution is followed by nothing but a bilinear
resize, whose weights sum to 1, so the inverse map of the channels can be folded into that convolution exactly.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from efficientsam3.checkpoints.reading import StateDict
from efficientsam3.runtime.errors import UserError

# A channel's deviation is taken to be at least this part of the root mean square over channels, so that channels which
# hardly vary are not scaled up to unit variance.
SMALLEST_DEVIATION = 1e-2


@dataclass(frozen=True)
class Standardisation:
    """Mean of each of the teacher's channels, and standard deviation of each, as it is or rotated."""

    mean: torch.Tensor  # (D,) float32
    std: torch.Tensor  # (D,) float32, positive; of the rotated channels where there is a rotation
    rotation: torch.Tensor | None = None  # (D, D) float32, orthogonal: a row for each rotated channel

    @classmethod
    def of(cls, mean: torch.Tensor, variance: torch.Tensor) -> Self:
        """Compute from (D,) moments; deviations are clamped to `SMALLEST_DEVIATION` of their root mean square."""
        return cls(mean.float(), _deviations(variance, float(variance.mean())))

    @classmethod
    def white(cls, mean: torch.Tensor, covariance: torch.Tensor) -> Self:
        """The principal components at unit variance, from (D,) and (D, D) float64; clamped as by `of`."""
        variance, components = torch.linalg.eigh(covariance)
        return cls(mean.float(), _deviations(variance, float(variance.mean())), components.T.float().contiguous())

    @classmethod
    def phi_s(cls, mean: torch.Tensor, covariance: torch.Tensor) -> Self:
        """PHI-S: components mixed so that all have the mean variance, from (D,) and (D, D) float64.

        The squared error is that of the features, but for one factor.

        Raises:
            UserError: see `check_phi_s`.
        """
        check_phi_s(len(mean))
        variance, components = torch.linalg.eigh(covariance)
        same = torch.full_like(mean, float(variance.mean()))
        rotation = _hadamard(len(mean)) @ components.T
        return cls(mean.float(), _deviations(same, float(variance.mean())), rotation.float())

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """From what `state_dict` gave.

        Raises:
            KeyError: something is missing.
        """
        if "rotation" in state:
            return cls(state["mean"], state["rotated_std"], state["rotation"])
        return cls(state["mean"], state["std"])

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What checkpoints hold of it; with a rotation, other names keep earlier versions from reading it without."""
        if self.rotation is None:
            return {"mean": self.mean, "std": self.std}
        return {"mean": self.mean, "rotated_std": self.std, "rotation": self.rotation}

    def to(self, device: torch.device) -> "Standardisation":
        """A copy on `device`."""
        rotation = None if self.rotation is None else self.rotation.to(device)
        return Standardisation(self.mean.to(device), self.std.to(device), rotation)

    def standardise(self, features: torch.Tensor) -> torch.Tensor:
        """Map the teacher's features, (B, D, H, W) float, to zero mean and unit variance, in float32."""
        centred = features.float() - self.mean[:, None, None]
        return _rotated(self.rotation, centred) / self.std[:, None, None]

    def restore(self, features: torch.Tensor) -> torch.Tensor:
        """Undo `standardise`."""
        scaled = features.float() * self.std[:, None, None]
        return _rotated(None if self.rotation is None else self.rotation.T, scaled) + self.mean[:, None, None]

    def fold(self, state: Mapping[str, torch.Tensor], output: str) -> StateDict:
        """Turn the weights of a student that gives standardised features into those of one that gives raw features.

        Args:
            state: its state dict.
            output: what the keys of its last convolution start with, see `models.heads.output_prefix`.
        """

        def back(rows: torch.Tensor) -> torch.Tensor:
            scaled = rows * self.std.double()[:, None]
            return scaled if self.rotation is None else self.rotation.double().T @ scaled

        return _map_output(state, output, back, self.mean.double())

    def unfold(self, state: Mapping[str, torch.Tensor], output: str) -> StateDict:
        """Undo `fold`."""

        def there(rows: torch.Tensor) -> torch.Tensor:
            rotated = rows if self.rotation is None else self.rotation.double() @ rows
            return rotated * (1 / self.std.double()[:, None])

        return _map_output(state, output, there, -there(self.mean.double()[:, None])[:, 0])


def check_phi_s(channels: int) -> None:
    """Refuse a number of channels that there is no Hadamard matrix of here.

    Raises:
        UserError: it is no power of 2.
    """
    if channels & (channels - 1):
        raise UserError(
            f"DISTILL.NORMALIZE phi-s needs a number of channels that is a power of 2, and the teacher has {channels}: "
            "use whiten or channel."
        )


def _deviations(variance: torch.Tensor, mean_variance: float) -> torch.Tensor:
    """(D,) float32 from (D,) float64, none of them nearly 0."""
    least = SMALLEST_DEVIATION * mean_variance**0.5
    return variance.clamp(min=0).sqrt().clamp(min=max(least, torch.finfo(torch.float32).tiny)).float()


def _hadamard(side: int) -> torch.Tensor:
    """Sylvester's Hadamard matrix at unit length, (side, side) float64."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < side:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)]) / 2**0.5
    return matrix


def _rotated(rotation: torch.Tensor | None, features: torch.Tensor) -> torch.Tensor:
    """(B, D, H, W), by (D, D)."""
    return features if rotation is None else (rotation @ features.flatten(2)).reshape(features.shape)


def _map_output(
    state: Mapping[str, torch.Tensor], prefix: str, linear: Callable[[torch.Tensor], torch.Tensor], shift: torch.Tensor
) -> StateDict:
    """Let the last convolution give `linear` of (D, n) output + `shift` (D,), computed in float64."""
    weight, bias = state[f"{prefix}weight"], state[f"{prefix}bias"]
    return dict(state) | {
        f"{prefix}weight": linear(weight.double().flatten(1)).reshape(weight.shape).to(weight.dtype),
        f"{prefix}bias": (linear(bias.double()[:, None])[:, 0] + shift).to(bias.dtype),
    }
