"""A PCA projection of an embedding's channels, fitted on a few images and kept next to the store's manifest."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import atomic_path, sha256_file

PROJECTION_NAME = "projection.safetensors"
PROJECTION_IMAGES = 32  # a store's projection is fitted on this many images
# Components whose deviation is below this share of the largest one are noise, and are not scaled to unit variance.
_SMALLEST_DEVIATION = 1e-4


@dataclass(frozen=True)
class Projection:
    """The leading principal components of D channels."""

    mean: torch.Tensor  # (D,) float32
    basis: torch.Tensor  # (K, D) float32, orthonormal rows
    deviation: torch.Tensor  # (K,) float32, standard deviation along each component, falling
    variance_kept: float  # share of the variance of the images that it was fitted on, in [0, 1]

    def to(self, device: torch.device) -> "Projection":
        """This projection on `device`."""
        tensors = (self.mean.to(device), self.basis.to(device), self.deviation.to(device))
        return Projection(*tensors, self.variance_kept)

    def project(self, grid: torch.Tensor) -> torch.Tensor:
        """(B, D, T) float to (B, K, T) float32 coefficients of unit variance."""
        return (self.basis @ (grid.float() - self.mean[:, None])) / self.deviation[:, None]

    def restore(self, coefficients: torch.Tensor) -> torch.Tensor:
        """(B, K, T) float32 to (B, D, T) float32."""
        return self.basis.T @ (coefficients * self.deviation[:, None]) + self.mean[:, None]


def fit_projection(embeddings: Iterable[torch.Tensor], components: int) -> Projection:
    """The projection that keeps the most variance over all cells of some (B, D, E, E) embeddings.

    Raises:
        UserError: there are no embeddings, or they have fewer channels than `components`.
    """
    count, total, squares = 0, torch.zeros(1), torch.zeros(1)
    for batch in embeddings:
        # On the CPU, since MPS has no float64, and float32 loses the small components.
        cells = batch.detach().cpu().double().flatten(2).transpose(1, 2).flatten(0, 1)  # [B * E * E, D]
        count, total, squares = count + len(cells), total + cells.sum(0), squares + cells.T @ cells
    if count == 0:
        raise UserError(
            "There is no embedding to fit a projection on: give a dataset with at least one readable image."
        )
    check_components(components, len(total))
    mean = total / count
    variances, vectors = torch.linalg.eigh(squares / count - mean.outer(mean))
    variances, basis = variances.flip(0).clamp(min=0), vectors.T.flip(0)[:components]
    deviation = variances[:components].sqrt().clamp(min=max(_SMALLEST_DEVIATION * float(variances[0]) ** 0.5, 1e-12))
    kept = float(variances[:components].sum() / variances.sum()) if variances.sum() > 0 else 1.0
    return Projection(mean.float(), basis.float().contiguous(), deviation.float(), kept)


def check_components(components: int, embed_dim: int) -> None:
    """Refuse more components than channels.

    Raises:
        UserError: there are more components than channels.
    """
    if components > embed_dim:
        raise UserError(
            f"Codec pca{components} has more components than the {embed_dim} channels of the embedding: give fewer."
        )


def save_projection(directory: Path, projection: Projection) -> str:
    """Write `PROJECTION_NAME` atomically; returns its SHA-256, which the manifest records."""
    tensors = {"mean": projection.mean, "basis": projection.basis, "deviation": projection.deviation}
    with atomic_path(directory / PROJECTION_NAME) as temporary:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary)
    return sha256_file(directory / PROJECTION_NAME)


def load_projection(directory: Path, sha256: str, variance_kept: float) -> Projection:
    """Read what `save_projection` wrote.

    Raises:
        UserError: the file is missing, damaged, or not the one that the manifest names.
    """
    path = directory / PROJECTION_NAME
    remedy = "restore it from a copy, since no record of this store can be decoded without it"
    if not path.is_file():
        raise UserError(f"{path} is missing: {remedy}.")
    if sha256_file(path) != sha256:
        raise UserError(f"{path} is not the projection that the store's manifest names (SHA-256): {remedy}.")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}.") from error
    return Projection(tensors["mean"], tensors["basis"], tensors["deviation"], variance_kept)
