"""Training checkpoints: `ckpt_epoch_N.pth`, written whole or not at all, readable with `weights_only=True`."""

import re
from pathlib import Path
from typing import Any

import torch

from efficientsam3.checkpoints.reading import load_pickled
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import atomic_path, require_file

_NAME = re.compile(r"ckpt_epoch_(\d+)\.pth")


def checkpoint_path(output_dir: Path, epoch: int) -> Path:
    """Where the checkpoint of a 0-based epoch lies."""
    return output_dir / f"ckpt_epoch_{epoch}.pth"


def latest_checkpoint(output_dir: Path) -> Path | None:
    """The checkpoint of the highest epoch in a folder, or None. Its name appears only once it is complete."""
    epochs = [int(match[1]) for path in output_dir.glob("ckpt_epoch_*.pth") if (match := _NAME.fullmatch(path.name))]
    return checkpoint_path(output_dir, max(epochs)) if epochs else None


def save_training_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint of tensors, numbers, strings, lists and dicts, atomically.

    Raises:
        UserError: it cannot be written; what was at `path` is still there.
    """
    with atomic_path(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # what PyTorch's zip writer raises on a full disk
            raise UserError(
                f"Cannot write {path} ({error}): free some space and run the same command again."
            ) from error


def load_training_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint that `save_training_checkpoint` wrote, on the CPU.

    Raises:
        UserError: it is missing, damaged, or not a training checkpoint of this project.
    """
    require_file(path, "Training checkpoint", "give --resume a ckpt_epoch_N.pth of this project")
    content = load_pickled(path)
    missing = {"model", "architecture", "optimizer", "epoch", "step"} - set(
        content if isinstance(content, dict) else ()
    )
    if missing:
        raise UserError(
            f"{path} is not a training checkpoint of this project (it lacks {', '.join(sorted(missing))}); "
            "to start from its weights, give it as MODEL.PRETRAINED."
        )
    return dict(content)
