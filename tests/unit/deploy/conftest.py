"""A small SAM3 and small students for the tests of deployment."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from efficientsam3.data.preprocess import SAM3_PREPROCESSING
from efficientsam3.models.student import Student, StudentArchitecture

IMAGE_SIZE = 224  # of the small SAM3; its embeddings have 64 channels on 16 x 16 cells


@pytest.fixture(scope="session")
def student_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function from backbone and head to a training checkpoint that fits the small SAM3, one step trained."""
    folder = tmp_path_factory.mktemp("students")
    made: dict[str, Path] = {}

    def make(backbone: str = "efficientvit_b0", head: str = "published") -> Path:
        name = f"{backbone.replace('/', '_')}_{head}.pth"
        if name not in made:
            torch.save(training_checkpoint(backbone, head=head), folder / name)
            made[name] = folder / name
        return made[name]

    return make


def training_checkpoint(backbone: str, **architecture: Any) -> dict[str, Any]:
    """What training writes, after one step on noise, so that BatchNorm's counters have moved."""
    torch.manual_seed(0)
    values = {"embed_dim": 64, "embed_size": 16, "image_size": IMAGE_SIZE} | architecture
    student = Student(StudentArchitecture(backbone, **values)).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    student(torch.randn(2, 3, values["image_size"], values["image_size"])).square().mean().backward()
    optimizer.step()
    preprocessing = SAM3_PREPROCESSING.model_copy(update={"image_size": values["image_size"]})
    return {
        "model": student.state_dict(),
        "architecture": asdict(student.architecture),
        "preprocessing": preprocessing.model_dump(),
        "epoch": 0,
    }
