"""Train and write down what was seen."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from efficientsam3.config.schema import TrainConfig
from efficientsam3.models.student import Student
from efficientsam3.runtime.distributed import Process, all_gather
from efficientsam3.runtime.signals import StopRequest
from efficientsam3.train import loop
from efficientsam3.train.batches import TrainBatch
from efficientsam3.train.loop import Group, Trainer
from efficientsam3.train.run import train
from two_processes import one_of_two


class StopAfter(StopRequest):
    """Asks for the end at the n-th time of asking, after steps and after batches of validation; 0 never."""

    def __init__(self, times: int) -> None:
        self._left = times

    @property
    def requested(self) -> bool:  # type: ignore[override]
        self._left -= 1
        return self._left == 0


def record(config: TrainConfig, process: Process, stop_after: int) -> dict[str, Any]:
    """Train with BatchNorms in eval mode; returns the images of each process's steps, and the first one's gradients."""
    images: list[str] = []
    gradients: list[dict[str, torch.Tensor]] = []
    step, apply, switch = Trainer._take_step, loop.apply_if_finite, Student.train

    def spy_images(trainer: Trainer, group: Group) -> Any:
        return step(trainer, group._replace(batches=noted(group.batches)))

    def noted(batches: Iterator[TrainBatch]) -> Iterator[TrainBatch]:
        for batch in batches:
            images.extend(image_id for image_id in batch.image_ids if image_id)
            yield batch

    def spy_gradients(optimizer: torch.optim.AdamW, bad: torch.Tensor) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients.append({str(index): parameter.grad.clone() for index, parameter in enumerate(parameters)})
        apply(optimizer, bad)

    def train_without_norms(student: Student, mode: bool = True) -> Student:
        switch(student, mode)
        for module in student.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return student

    with (
        mock.patch.object(Trainer, "_take_step", spy_images),
        mock.patch.object(loop, "apply_if_finite", spy_gradients),
        mock.patch.object(Student, "train", train_without_norms),
    ):
        summary = train(config, process, StopAfter(stop_after), allow_config_change=True)
    assert summary.stopped == (stop_after > 0)
    return {"images": all_gather(images), "gradients": gradients[0] if gradients else {}}


def record_on_two(rank: int, config: str, output: Path, stop_after: int, port: int) -> None:
    """One of two processes' `record`; the first writes `output`."""
    with one_of_two(rank, port) as own_process:
        found = record(TrainConfig.model_validate_json(config), own_process, stop_after)
        if own_process.is_main:
            torch.save(found, output)


def train_on_two(rank: int, config: str, port: int) -> None:
    """One of two processes of a training."""
    with one_of_two(rank, port) as own_process:
        train(TrainConfig.model_validate_json(config), own_process)
