from pathlib import Path

import pytest
import torch

from efficientsam3.runtime.errors import UserError
from efficientsam3.store.projection import PROJECTION_NAME, fit_projection, load_projection, save_projection


def grids() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 6, 3, 3, generator=generator) * torch.tensor([4.0, 3, 2, 1, 0.1, 0])[:, None, None] + 5


def test_it_is_the_principal_components_of_all_cells() -> None:
    cells = grids().flatten(2).transpose(1, 2).flatten(0, 1)
    projection = fit_projection(grids().split(1), 3)
    _, singular, vectors = torch.linalg.svd(cells - cells.mean(0), full_matrices=False)
    torch.testing.assert_close(projection.mean, cells.mean(0))
    torch.testing.assert_close((projection.basis @ vectors[:3].T).abs(), torch.eye(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(projection.deviation, singular[:3] / len(cells) ** 0.5)
    assert projection.variance_kept == pytest.approx(float((singular[:3] ** 2).sum() / (singular**2).sum()))


def test_coefficients_have_unit_variance_and_all_components_lose_nothing() -> None:
    projection = fit_projection([grids()], 6)
    coefficients = projection.project(grids().flatten(2))
    torch.testing.assert_close(coefficients.transpose(0, 1).flatten(1).std(1, correction=0)[:5], torch.ones(5))
    torch.testing.assert_close(projection.restore(coefficients), grids().flatten(2))


def test_it_is_stored_and_checked(tmp_path: Path) -> None:
    projection = fit_projection([grids()], 2)
    sha256 = save_projection(tmp_path, projection)
    loaded = load_projection(tmp_path, sha256, projection.variance_kept)
    for name in ("mean", "basis", "deviation"):
        assert torch.equal(getattr(loaded, name), getattr(projection, name))
    with pytest.raises(UserError, match="not the projection"):
        load_projection(tmp_path, "00", 1.0)
    (tmp_path / PROJECTION_NAME).unlink()
    with pytest.raises(UserError, match="is missing"):
        load_projection(tmp_path, sha256, 1.0)


def test_bad_requests_are_refused() -> None:
    with pytest.raises(UserError, match="pca7 .* 6 channels"):
        fit_projection([grids()], 7)
    with pytest.raises(UserError, match="no embedding to fit"):
        fit_projection([], 1)
