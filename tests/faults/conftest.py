"""The place that each row spoils."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.bases import BASES, make_base
from faults.fault import Place
from sharing import made_once


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """An empty folder that any user may enter, removed afterwards."""

    def find_base(name: str) -> Path:
        if "FAULTS_BASES" in os.environ:
            return Path(os.environ["FAULTS_BASES"], name, BASES[name][0])
        return made_once(
            tmp_path_factory, f"faults/{name}/{BASES[name][0]}", lambda path: make_base(name, path, find_base)
        )

    outside = Path(tempfile.mkdtemp(prefix="fault-"))
    outside.chmod(0o755)
    root = outside / "place"
    root.mkdir()
    try:
        yield Place(root, find_base)
    finally:
        for folder, folders, _ in os.walk(outside):
            for name in folders:
                path = Path(folder, name)
                if not path.is_symlink():
                    path.chmod(0o755)
        shutil.rmtree(outside)
