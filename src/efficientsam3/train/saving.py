"""When a training saves, what, and which of its checkpoints stay."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from efficientsam3.checkpoints.training import (
    checkpoint_path,
    remove_old_checkpoints,
    save_training_checkpoint,
    step_checkpoint_path,
)
from efficientsam3.runtime.distributed import Process, all_gather
from efficientsam3.runtime.files import write_json
from efficientsam3.runtime.random_state import capture_random_state
from efficientsam3.train.build import TargetMoments
from efficientsam3.train.folder import BEST_NAME
from efficientsam3.train.loop import Trainer
from efficientsam3.train.necks import necks_of, necks_state
from efficientsam3.train.objective import Averages
from efficientsam3.train.plan import TrainPlan


class Saver:
    """Saves a training."""

    def __init__(self, plan: TrainPlan, process: Process, trainer: Trainer, moments: TargetMoments) -> None:
        """Save `trainer`, whose targets have `moments`, to the output folder of `plan`."""
        self._plan = plan
        self._process = process
        self._trainer = trainer
        self._moments = moments
        self.path = checkpoint_path(plan.output_dir, trainer.epoch - 1)  # the checkpoint saved last

    def is_due(self) -> bool:
        """Whether this step is one of TRAIN.SAVE_STEPS."""
        every = self._plan.optimisation.save_steps
        return every > 0 and self._trainer.step % every == 0

    def save_step(self) -> None:
        """Save within an epoch; all processes must call this."""
        self.path = step_checkpoint_path(self._plan.output_dir, self._trainer.step)
        self._save(finished=False)
        if self._process.is_main:
            remove_old_checkpoints(self._plan.output_dir, self._plan.optimisation.keep_steps, 0, None)

    def save_epoch(self, lines: Sequence[Averages]) -> None:
        """Save at the end of an epoch; `lines` are the figures of all epochs so far. All processes must call this."""
        output = self._plan.output_dir
        self.path = checkpoint_path(output, self._trainer.epoch)
        self._save(finished=True)
        if self._process.is_main:
            best = find_best(output, lines)
            if best is not None:
                write_json(output / BEST_NAME, best)
            kept = None if best is None else output / best["path"]
            remove_old_checkpoints(output, 0, self._plan.optimisation.keep_epochs, kept)

    def _save(self, finished: bool) -> None:
        trainer, plan = self._trainer, self._plan
        state = trainer.state_dict()
        share = {"random": capture_random_state(self._process.device), "sums": trainer.sums.state_dict()}
        shares = all_gather(share)
        if not self._process.is_main:
            return
        content: dict[str, Any] = {
            **state,
            "model": _weights(trainer.student),
            "architecture": asdict(plan.architecture),
            "preprocessing": json.loads(plan.targets.manifest.preprocessing.model_dump_json()),
            "finished": finished,
            "images": len(plan.train),
            "images_per_step": plan.images_per_step(self._process.world_size),
            "world_size": self._process.world_size,
            "processes": shares,
            "config": plan.recorded,
            **self._moments.state_dict(),
        }
        if trainer.ema is not None:
            content["ema"] = _weights(trainer.evaluated)
        if plan.necks:
            content["necks"] = {
                "origins": {name: neck.origin for name, neck in plan.necks.items()},
                "model": necks_state(necks_of(trainer.trained)),
                **({} if trainer.ema is None else {"ema": necks_state(trainer.evaluated_necks)}),
            }
        save_training_checkpoint(self.path, content)


def find_best(output_dir: Path, lines: Sequence[Averages]) -> dict[str, Any] | None:
    """The best epoch that has a checkpoint, in the form of `best.json`; None if nothing was validated.

    The first figure of the mask probe decides (higher is better); without a probe, the validation loss does.
    """
    probed = next((name for line in lines for name in line if name.startswith("probe/")), None)
    metric, sign = ("val/loss", -1) if probed is None else (probed, 1)
    complete = [line for line in lines if {metric, "step"} <= line.keys()]
    there = [line for line in complete if checkpoint_path(output_dir, int(line["epoch"])).exists()]
    if not there:
        return None
    best = max(there, key=lambda line: sign * line[metric])
    epoch = int(best["epoch"])
    return {
        "path": checkpoint_path(output_dir, epoch).name,
        "epoch": epoch,
        "step": int(best["step"]),
        "metric": metric,
        "value": best[metric],
    }


def _weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.detach().cpu() for key, value in module.state_dict().items()}
