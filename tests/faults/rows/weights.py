"""Spoiling checkpoints: helpers of several tables."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from faults.fault import Place

BRACKETS = "[" * 100_000
TRUNK = "detector.backbone.vision_backbone.trunk."
MERGE = "merge --student-ckpt {student} --sam3-ckpt {sam3} --output {root}/out.pt"
ASK = "{image} --out {root}/answers --device cpu"


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Load a checkpoint, change it, and save what `change` returns, or what it was given."""
    content = torch.load(path, weights_only=True)
    changed = change(content)
    torch.save(content if changed is None else changed, path)


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    """The same of a JSON file."""
    content = json.loads(path.read_text())
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed))


def overwrite(path: Path, data: bytes, where: float = 0.5) -> None:
    """Write bytes over those in the middle of a file, or elsewhere."""
    with path.open("r+b") as file:
        file.seek(int(path.stat().st_size * where))
        file.write(data)


def sam3_with(name: str, value: Callable[[torch.Tensor], Any], end: str) -> Callable[[Place], None]:
    """Change each tensor of the SAM3 under `name` whose key ends so."""

    def spoil(place: Place) -> None:
        def change(tensors: dict[str, torch.Tensor]) -> None:
            keys = [key for key in tensors if key.startswith(name) and key.endswith(end)]
            assert keys
            tensors.update({key: value(tensors[key]) for key in keys})

        edit(place.sam3, change)

    return spoil
