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


@pytest.fixture(scope="session")
def with_variants(
    tiny_sam3_path: Path, student_checkpoint: Make, photographs_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An ONNX directory without a detector, with the image encoder in float16 and int8 beside float32."""
    folder = tmp_path_factory.mktemp("variants")
    merge(student_checkpoint(), tiny_sam3_path, folder / "points.pt", keep=["tracker"])
    pictures = photographs_path / "images" / "train"
    export_onnx(folder / "points.pt", folder / "onnx", variants=["fp16", "int8"], calibrate=pictures, pictures=pictures)
    return folder / "onnx"
