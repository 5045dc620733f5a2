"""Steps of training, and validation."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.profiler import record_function

from efficientsam3.data.loader import ImageBatch
from efficientsam3.data.preprocess import build_valid_mask, halve, normalise
from efficientsam3.runtime.distributed import Process, broadcast_state
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.runtime.progress import progress_bar
from efficientsam3.train.batches import TrainBatch, copy_stream, on_device, with_records
from efficientsam3.train.finite import FiniteWatch, StatisticsGuard
from efficientsam3.train.necks import necks_of, student_of
from efficientsam3.train.objective import LOSS, Averages, Losses, Necks, Objective
from efficientsam3.train.optimizer import apply_if_finite, restore_optimizer
from efficientsam3.train.prompts import Shown
from efficientsam3.train.stages import Label
from efficientsam3.train.sums import LossSums
from efficientsam3.train.targets import Targets

logger = logging.getLogger(LOGGER_NAME)
_VALIDATION = 0  # the epoch that validation draws its prompts for, so that epochs compare


@dataclass(frozen=True)
class StepSettings:
    """How steps are taken."""

    images: int  # an epoch
    batch: int  # images a batch, over all processes
    accumulation: int  # batches a step
    clip_norm: float  # 0: no clipping
    small_epochs: int  # first epochs, in which the student gets images of half the size
    autocast: torch.dtype | None  # None: float32
    print_freq: int  # batches between two log lines


class Group(NamedTuple):
    """The batches of one step, each taken when the one before is done, so that not all lie on the device at once."""

    batches: Iterator[TrainBatch]
    size: int


class Trainer:
    """A student, and the necks that are trained with it, with their optimiser, taking steps.

    `step` counts optimiser steps, skipped ones too; `epoch` is the one under way, and `position` how many images of its
    order all processes together have taken.
    """

    items = "images"  # what is trained on, in words

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.AdamW,
        rate_at: Callable[[int], float],
        targets: Targets,
        objective: Objective,
        process: Process,
        settings: StepSettings,
        ema: ModelEmaV3 | None = None,
        report: Callable[[int, Averages], None] = lambda step, figures: None,
        stage: Label = record_function,
    ) -> None:
        """Set up.

        Args:
            model: the student, alone or a `StudentWithNecks`, or DistributedDataParallel around it.
            optimizer: fused, over the model's parameters; a group's `lr_scale` is a factor on its learning rate.
            rate_at: gives the learning rate of a 0-based optimiser step.
            targets: gives the teacher's embeddings of a batch.
            objective: what is minimised.
            process: this process among its peers.
            settings: how steps are taken.
            ema: average of the weights, updated after every step, and what is validated.
            report: called now and then with the number of steps taken and figures of the last one.
            stage: marks the stages of a step; by default for PyTorch's profiler, which costs nearly nothing.
        """
        self.model = model
        self.ema = ema
        self.step = 0
        self.epoch = 0
        self.position = 0
        self.broken: list[str] = []
        self.sums = LossSums(process.device)  # this process's part of the epoch so far
        self._optimizer = optimizer
        self._rate_at = rate_at
        self._targets = targets
        self._objective = objective
        self._process = process
        self._settings = settings
        self._report = report
        self._stage = stage
        # float16 needs its gradients scaled; bfloat16 and float32 do not.
        self._scaler = torch.amp.GradScaler(process.device.type, enabled=settings.autocast == torch.float16)
        self._copying = copy_stream(process.device)
        self._watch = FiniteWatch()
        self._guard = StatisticsGuard(self.student)

    @property
    def trained(self) -> nn.Module:
        """The student, with its necks where they are trained."""
        return _unwrapped(self.model)

    @property
    def student(self) -> nn.Module:
        """The student itself."""
        return student_of(self.trained)

    @property
    def _averaged(self) -> nn.Module:
        return self.trained if self.ema is None else self.ema.module

    @property
    def evaluated(self) -> nn.Module:
        """What is validated, and what the training is for: the average where there is one, else the student."""
        return student_of(self._averaged)

    @property
    def evaluated_necks(self) -> Necks:
        """The necks that go with `evaluated`."""
        return necks_of(self._averaged)

    @property
    def observed(self) -> nn.Module:
        """`evaluated`, giving the teacher's embeddings, with standardisation undone."""
        return self._objective.raw(self.evaluated)

    @property
    def learning_rate(self) -> float:
        """The rate of the next step; the schedule follows the images seen, not the steps taken."""
        settings = self._settings
        a_step = settings.batch * settings.accumulation
        return self._rate_at(self.epoch * math.ceil(settings.images / a_step) + math.ceil(self.position / a_step))

    @property
    def skipped(self) -> int:
        """How many steps of this epoch were skipped because the gradient is not finite."""
        self._watch.look()
        return self._watch.skipped

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs in addition to the weights; the same on all processes."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "step": self.step,
            "epoch": self.epoch,
            "position": self.position,
            "skipped": self.skipped,
            "skipped_in_a_row": self._watch.in_a_row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        restore_optimizer(self._optimizer, state["optimizer"])
        if state["scaler"]:  # empty where the checkpoint was made in another precision
            self._scaler.load_state_dict(state["scaler"])
        self.step, self.epoch, self.position = (int(state[name]) for name in ("step", "epoch", "position"))
        self._watch.skipped, self._watch.in_a_row = state["skipped"], state["skipped_in_a_row"]

    def begin_epoch(self, epoch: int) -> None:
        """Start an epoch at its beginning."""
        self.epoch, self.position, self.sums = epoch, 0, LossSums(self._process.device)
        self._watch.skipped = 0

    def train(self, batches: Iterable[ImageBatch], total: int) -> Iterator[None]:
        """Train on the rest of the epoch, `total` batches; yields after each step.

        Raises:
            UserError: the loss or its gradient is not finite ten steps in a row.
        """
        self.model.train()
        start, before, settings = time.monotonic(), self.position, self._settings
        done = self.position // settings.batch
        total += done
        with progress_bar(f"epoch {self.epoch}", total, self._process.is_main) as advance:
            advance(done)
            for group in _groups(self._ready(batches), settings.accumulation, total - done):
                losses, norm = self._take_step(group)
                done += group.size
                advance(group.size)
                if done % settings.print_freq < group.size or done == total:
                    self._watch.look()
                    rate = (self.position - before) / (time.monotonic() - start)
                    left = (settings.images - self.position) / rate
                    figures = {name: value.item() for name, value in losses.items()}
                    figures |= {"grad_norm": norm.item(), "lr": self.learning_rate}
                    self._report(self.step, figures)
                    logger.info(
                        "epoch %d batch %d/%d loss %.4f lr %.3g %.2f %s/s ETA %.0f s",
                        self.epoch, done, total, figures[LOSS], figures["lr"], rate, self.items, left,
                    )  # fmt: skip
                yield

    def averages(self) -> Averages:
        """The epoch's averages over all processes."""
        return self._objective.summarise(self.sums.averages())

    @torch.no_grad()
    def validate(self, batches: Iterable[ImageBatch], total: int, stop: Callable[[], bool]) -> Averages | None:
        """Losses averaged over the validation split, each image once, over all processes; empty without images.

        Args:
            batches: this process's share.
            total: how many batches the process with the most of them has.
            stop: called after each batch; once it returns true, validation is abandoned and None returned.
        """
        # DDP's forward would wait for processes that have a batch fewer.
        model = self._averaged
        broadcast_state(model)  # BatchNorm's statistics differ between processes
        model.eval()
        sums, iterator = LossSums(self._process.device), self._ready(batches)
        for _ in range(total):
            if (batch := next(iterator, None)) is not None:
                sums.add(self._loss(model, batch, _VALIDATION), batch.weights)
                self.broken += batch.broken
            if stop():
                return None
        return self._objective.summarise(sums.averages())

    def _ready(self, batches: Iterable[ImageBatch]) -> Iterator[TrainBatch]:
        """The batches with their records, on the device."""
        device = self._process.device
        batches_of_records = self._waiting(with_records(batches, self._targets, device))
        return on_device(batches_of_records, device, self._copying, self._stage)

    def _waiting(self, batches: Iterator[TrainBatch]) -> Iterator[TrainBatch]:
        while True:
            with self._stage("wait for data"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _take_step(self, group: Group) -> tuple[Losses, torch.Tensor]:
        """Returns the last batch's losses and the gradient's norm."""
        self._guard.keep()
        image_ids: list[str] = []
        for index, batch in enumerate(group.batches):
            losses = self._accumulate(batch, group.size, last=index == group.size - 1)
            self.sums.add(losses, batch.weights)
            self.broken += batch.broken
            image_ids += batch.image_ids
        with self._stage("optimiser"):
            norm = self._update(image_ids)
        self.step += 1
        self.position = min(self._settings.images, self.position + group.size * self._settings.batch)
        if self.ema is not None:
            with self._stage("average"):
                self.ema.update(self.trained, self.step)
        return losses, norm

    def _accumulate(self, batch: TrainBatch, size: int, last: bool) -> Losses:
        """Add a batch's share of the gradient of `size` batches."""
        with self._synchronised(last):
            losses = self._loss(self.model, batch, self.epoch)
            with self._stage("backward"):
                self._scaler.scale(losses[LOSS] / size).backward()  # type: ignore[no-untyped-call]
        return {name: value.detach() for name, value in losses.items()}

    def _synchronised(self, last: bool) -> AbstractContextManager[None]:
        if last or not isinstance(self.model, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def _update(self, image_ids: list[str]) -> torch.Tensor:
        """Take the optimiser's step, unless the gradient is not finite; returns its norm before clipping."""
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = self.learning_rate * parameters.get("lr_scale", 1.0)
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self._settings.clip_norm or float("inf"))
        bad = ~norm.isfinite()
        self._watch.note(self.step, image_ids, bad)
        if self._scaler.is_enabled():
            self._scaler.step(self._optimizer)
            self._scaler.update()
        else:
            apply_if_finite(self._optimizer, bad)
        self._guard.restore(bad)
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def _inputs(self, model: nn.Module, batch: TrainBatch) -> torch.Tensor:
        """What the model takes."""
        pixels = normalise(batch.pixels, batch.content_sizes, self._targets.manifest.preprocessing)
        if self._process.device.type == "cuda":
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        return pixels

    def _valid(self, batch: TrainBatch) -> torch.Tensor:
        """(B, E, E) bool: the cells that count."""
        manifest = self._targets.manifest
        return build_valid_mask(batch.content_sizes, manifest.preprocessing.image_size, manifest.embed_size)

    def _loss(self, model: nn.Module, batch: TrainBatch, epoch: int) -> Losses:
        device = self._process.device
        with self._stage("normalise"):
            pixels = self._inputs(model, batch)
        with self._stage("targets"):
            targets = self._targets(batch, pixels)
        dtype = self._settings.autocast
        if model.training and epoch < self._settings.small_epochs:
            pixels = halve(pixels)
        with self._stage("forward"), torch.autocast(device.type, dtype, enabled=dtype is not None):
            student = model(pixels)
        with self._stage("loss"):
            valid = self._valid(batch)
            shown = Shown(batch.image_ids, batch.content_sizes, batch.objects, epoch)
            targets = _laid_out_like(student, targets)
            return self._objective(student, targets, valid, batch.weights, shown, necks_of(_unwrapped(model)))


def _unwrapped(model: nn.Module) -> nn.Module:
    if isinstance(model, nn.parallel.DistributedDataParallel):
        module: nn.Module = model.module
        return module
    return model


def _laid_out_like(student: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The targets in the memory layout of the student's output, which is channels_last on CUDA.

    Once, or every operation of the losses and of their gradients would read one of the two with a stride.
    """
    if targets.stride() == student.stride():
        return targets
    return torch.empty_like(student, dtype=targets.dtype).copy_(targets)


def _groups(batches: Iterable[TrainBatch], size: int, total: int) -> Iterator[Group]:
    """Consecutive groups of `size` of `total` batches; the last may be smaller."""
    iterator = iter(batches)
    for first in iterator:
        count = min(size, total)
        total -= count
        yield Group(chain([first], islice(iterator, count - 1)), count)
