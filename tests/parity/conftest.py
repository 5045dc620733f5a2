"""Meta's numbers, and the generator of the weights they were computed with, where they lie beside the checkout."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

REFERENCE = Path(__file__).parents[2].parent / "shared" / "sam3_reference"


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder with Meta's numbers."""
    if not REFERENCE.is_dir():
        pytest.skip("shared/sam3_reference with Meta's numbers is not beside this checkout")
    return REFERENCE


@pytest.fixture(scope="session")
def generator(reference: Path) -> ModuleType:
    """The module whose weights are a function of their key alone."""
    spec = importlib.util.spec_from_file_location("make_sam3_like", reference / "make_sam3_like.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def sam3_like(generator: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The full-size stand-in for sam3.pt, 3.45 GB; SAM3_LIKE names one that was made before."""
    given = os.environ.get("SAM3_LIKE")
    path = Path(given) if given else tmp_path_factory.mktemp("sam3") / "sam3_like.pt"
    if not path.is_file():
        torch.save(generator.sam3_like(), path)
    return path


@pytest.fixture(scope="session")
def golden(reference: Path) -> dict[str, torch.Tensor]:
    """Outputs of Meta's code for the full-size stand-in."""
    return load_file(reference / "golden.safetensors")


@pytest.fixture(scope="session")
def relative() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """Relative difference of two tensors in norm."""

    def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
        assert found.shape == expected.shape, (found.shape, expected.shape)
        return float((found - expected).norm() / expected.norm())

    return difference
