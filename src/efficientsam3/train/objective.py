"""The distillation loss: masked mean squared error plus masked cosine distance."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from efficientsam3.checkpoints.standardisation import Standardisation


@dataclass(frozen=True)
class Loss:
    """Scalars of one batch; `total` is what is minimised, the others are of raw features, whatever is minimised."""

    total: torch.Tensor
    mse: torch.Tensor
    cosine: torch.Tensor


def masked_mse(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Squared error, averaged over channels and the valid cells of each image.

    Args:
        student: (B, D, E, E) float.
        teacher: (B, D, E, E) float.
        valid: (B, E, E) bool, at least one cell set per image.

    Returns:
        (B,) float32.
    """
    return _masked_mean((student.float() - teacher.float()).square().mean(dim=1), valid)


def masked_cosine(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """1 - cosine similarity of the channel vectors, averaged over the valid cells of each image; arguments as above."""
    return _masked_mean(1 - F.cosine_similarity(student.float(), teacher.float(), dim=1), valid)


def distillation_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    valid: torch.Tensor,
    weights: torch.Tensor,
    pixel_wise: float,
    cosine: float,
    standardisation: Standardisation | None = None,
) -> Loss:
    """`pixel_wise` * masked MSE + `cosine` * masked cosine distance, averaged over the batch.

    Args:
        student: (B, D, E, E) float, standardised where there is a standardisation.
        teacher: (B, D, E, E) float, raw.
        valid: (B, E, E) bool, see `build_valid_mask`.
        weights: (B,) float, 1 for a picture and 0 for a stand-in that must not count.
        pixel_wise: weight of the squared error.
        cosine: weight of the cosine distance.
        standardisation: minimise the loss of standardised features.
    """
    if standardisation is not None:
        standardised = standardisation.standardise(teacher)
        total = distillation_loss(student, standardised, valid, weights, pixel_wise, cosine).total
        with torch.no_grad():
            raw = distillation_loss(standardisation.restore(student), teacher, valid, weights, pixel_wise, cosine)
        return Loss(total, raw.mse, raw.cosine)
    count = weights.sum().clamp(min=1)
    mse = (masked_mse(student, teacher, valid) * weights).sum() / count
    distance = (masked_cosine(student, teacher, valid) * weights).sum() / count
    return Loss(pixel_wise * mse + cosine * distance, mse, distance)


def _masked_mean(per_cell: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    return (per_cell * valid).sum(dim=(1, 2)) / valid.sum(dim=(1, 2))
