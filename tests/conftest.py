"""What all tests share: a small SAM3, a few images, and no network."""

import os
from pathlib import Path

import pytest
import torch

from sharing import made_once
from tiny import TINY_OPTS

os.environ["HF_HUB_OFFLINE"] = "1"
# One thread in each of the run's processes: more would wait for each other's cores.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """No workers for a single file: each would import PyTorch again. Else one more than cores, as many tests wait."""
    arguments = [argument.partition("::")[0] for argument in config.args]
    return 0 if len(set(arguments)) == 1 and arguments[0].endswith(".py") else 1 + (os.cpu_count() or 1)


_LONG = ("tests/e2e/", "tests/unit/train/", "tests/unit/merge/", "tests/unit/export/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, so that no process is left with one when the others have ended."""
    items.sort(key=lambda item: not item.nodeid.startswith(_LONG))


@pytest.fixture(scope="session")
def tiny_sam3_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SAM3 in sam3.pt's layout: 224 pixels, 64 channels, 16 cells a side."""
    from efficientsam3.testing.tiny_sam3 import write_tiny_sam3

    return made_once(tmp_path_factory, "sam3.pt", write_tiny_sam3)


@pytest.fixture(scope="session")
def photographs_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training and three validation images in SA-1B's format. Not to be changed: copy it first."""
    from efficientsam3.testing.sample_images import write_sample_images

    return made_once(tmp_path_factory, "photographs", lambda path: write_sample_images(path, train=6, val=3))


@pytest.fixture
def tiny_opts() -> list[str]:
    """Configuration options that fit `tiny_sam3_path`."""
    return list(TINY_OPTS)


@pytest.fixture
def repository() -> Path:
    """The checkout's root."""
    return Path(__file__).parents[1]
