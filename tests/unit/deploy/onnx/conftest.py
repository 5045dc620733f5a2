"""One model of the small SAM3, exported once for all tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from efficientsam3.deploy.merge import merge
from efficientsam3.deploy.onnx.export import export_onnx

Make = Callable[..., Path]


@pytest.fixture(scope="session")
def merged(tiny_sam3_path: Path, student_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole merged model."""
    path = tmp_path_factory.mktemp("merged") / "whole.pt"
    merge(student_checkpoint(), tiny_sam3_path, path)
    return path


@pytest.fixture(scope="session")
def exported(merged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its ONNX directory."""
    path = tmp_path_factory.mktemp("exported") / "onnx"
    export_onnx(merged, path)
    return path
