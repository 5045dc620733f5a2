"""A small export, made once, and configurations for it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from efficientsam3.config.load import load_config
from efficientsam3.config.schema import ExportConfig, TrainConfig
from efficientsam3.distill.export import export_embeddings
from efficientsam3.runtime.distributed import Process

CONFIGS = Path(__file__).parents[3] / "stage1" / "configs"
ONE = Process(rank=0, world_size=1, device=torch.device("cpu"), launcher=None)
MakeExport = Callable[..., ExportConfig]
MakeTraining = Callable[..., TrainConfig]


@pytest.fixture
def one_process() -> Process:
    """This process, alone."""
    return ONE


@pytest.fixture(scope="session")
def store_path(tmp_path_factory: pytest.TempPathFactory, tiny_sam3_path: Path, photographs_path: Path) -> Path:
    """OUTPUT of an export of `photographs_path`. Not to be changed: copy it first."""
    output = tmp_path_factory.mktemp("teacher")
    export_embeddings(_export(tiny_sam3_path, photographs_path, output), ONE)
    return output


@pytest.fixture
def make_export(tmp_path: Path, tiny_sam3_path: Path, photographs_path: Path) -> MakeExport:
    """Builds export configurations, with more options and paths where given."""

    def make(*opts: str, data: Path | None = None, output: Path | None = None) -> ExportConfig:
        return _export(tiny_sam3_path, data or photographs_path, output or tmp_path / "teacher", *opts)

    return make


@pytest.fixture
def make_training(tmp_path: Path, store_path: Path, photographs_path: Path) -> MakeTraining:
    """Builds training configurations of three epochs without warm-up."""

    def make(*opts: str, store: Path | None = None, data: Path | None = None) -> TrainConfig:
        fixed = {
            "DATA.DATA_PATH": data or photographs_path,
            "OUTPUT": tmp_path / "student",
            "DISTILL.TEACHER_EMBED_PATH": (store or store_path) / "embeddings",
        }
        brief = ["MODEL.PRETRAINED", "false", "TRAIN.EPOCHS", "3", "TRAIN.WARMUP_EPOCHS", "0", "DATA.BATCH_SIZE", "2"]
        return load_config(TrainConfig, CONFIGS / "es_ev_s.yaml", [*_tiny(), *brief, *opts], fixed)

    return make


def _export(teacher: Path, data: Path, output: Path, *opts: str) -> ExportConfig:
    fixed = {"MODEL.RESUME": teacher, "DATA.DATA_PATH": data, "OUTPUT": output}
    return load_config(ExportConfig, CONFIGS / "teacher" / "sam_vit_huge_sa1b.yaml", [*_tiny(), *opts], fixed)


def _tiny() -> list[str]:
    return ["DATA.IMG_SIZE", "224", "DISTILL.EMBED_SIZE", "16", "DISTILL.EMBED_DIM", "64", "DATA.NUM_WORKERS", "0"]
