"""Steps of training, and validation."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.profiler import record_function

from efficientsam3.checkpoints.standardisation import Standardisation
from efficientsam3.data.preprocess import build_valid_mask, normalise
from efficientsam3.runtime.distributed import Process, broadcast_state, sum_over_processes
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.runtime.progress import progress_bar
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.train.dataset import PictureBatch
from efficientsam3.train.finite import FiniteWatch, StatisticsGuard
from efficientsam3.train.objective import Loss, distillation_loss
from efficientsam3.train.optimizer import apply_if_finite
from efficientsam3.train.prefetch import on_device
from efficientsam3.train.records import DistillBatch, with_records
from efficientsam3.train.stages import Label

logger = logging.getLogger(LOGGER_NAME)
# `loss`, as minimised; and of raw features, whatever is minimised: `mse`, `cosine` (1 - similarity), `relative_mse`
# (`mse` over the mean of the channels' variances in the whole store, where that is known).
Averages = dict[str, float]


@dataclass(frozen=True)
class StepSettings:
    """How a step is computed."""

    pixel_wise: float
    cosine: float
    images: int  # an epoch
    batch: int  # images a batch, over all processes
    accumulation: int  # batches a step
    clip_norm: float  # 0: no clipping
    autocast: torch.dtype | None  # None: float32
    print_freq: int
    variance: float | None = None  # of the teacher's features, a mean over channels; None where it is not known
    standardisation: Standardisation | None = None  # what the targets are standardised by


class Restored(nn.Module):
    """A student that gives standardised features, made to give raw ones."""

    def __init__(self, student: nn.Module, standardisation: Standardisation) -> None:
        super().__init__()
        self.student, self._standardisation = student, standardisation
        self.architecture: Any = student.architecture
        self.training = student.training

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """As the student, in raw features."""
        return self._standardisation.restore(self.student(pixel_values))


class Trainer:
    """A student with its optimiser, taking steps.

    `step` counts optimiser steps, skipped ones too; `epoch` is the one under way, and `position` how many images of its
    order all processes together have taken. `report` is called now and then with the number of steps taken and figures
    of the last one, `targets` gives a batch's embeddings, by default its decoded records, and `stage` marks the stages
    of a step, by default for PyTorch's profiler, which costs nearly nothing while there is none.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.AdamW,
        rate_at: Callable[[int], float],
        store: EmbeddingStore,
        process: Process,
        settings: StepSettings,
        ema: ModelEmaV3 | None = None,
    ) -> None:
        """Set up.

        Args:
            model: the student, or DistributedDataParallel around it.
            optimizer: of the student's parameters, fused.
            rate_at: the learning rate of a 0-based optimiser step.
            store: decodes the batches' records.
            process: this process among its peers.
            settings: how a step is computed.
            ema: average of the weights, updated after every step, and what is validated.
        """
        self.model, self.ema = model, ema
        self.step, self.epoch, self.position, self.broken = 0, 0, 0, list[str]()
        self.report: Callable[[int, Averages], None] = lambda step, figures: None
        self.targets: Callable[[DistillBatch, torch.Tensor], torch.Tensor] = lambda batch, pixels: store.decode(
            batch.records
        )[1]
        self.stage: Label = record_function
        self._optimizer, self._rate_at, self._store = optimizer, rate_at, store
        self._process, self._settings = process, settings
        # float16 needs its gradients scaled; bfloat16 and float32 do not.
        self._scaler = torch.amp.GradScaler(process.device.type, enabled=settings.autocast == torch.float16)
        self._standardisation = (
            None if settings.standardisation is None else settings.standardisation.to(process.device)
        )
        self._watch, self._sums = FiniteWatch(), self._zeros()
        self._guard = StatisticsGuard(self.student)

    @property
    def student(self) -> nn.Module:
        """The student itself."""
        if isinstance(self.model, nn.parallel.DistributedDataParallel):
            module: nn.Module = self.model.module
            return module
        return self.model

    @property
    def evaluated(self) -> nn.Module:
        """What is validated, and what the training is for: the average where there is one, else the student."""
        return self.student if self.ema is None else self.ema.module

    @property
    def observed(self) -> nn.Module:
        """`evaluated`, giving the teacher's features, whatever it is trained to give."""
        return self.evaluated if self._standardisation is None else Restored(self.evaluated, self._standardisation)

    @property
    def learning_rate(self) -> float:
        """The rate of the next step; the schedule follows the images seen, whatever a step's size."""
        settings = self._settings
        a_step = settings.batch * settings.accumulation
        return self._rate_at(self.epoch * math.ceil(settings.images / a_step) + math.ceil(self.position / a_step))

    @property
    def skipped(self) -> int:
        """How many steps of this epoch were left out for want of a finite gradient."""
        self._watch.look()
        return self._watch.skipped

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the weights, alike on all processes."""
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
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.step, self.epoch, self.position = (int(state[name]) for name in ("step", "epoch", "position"))
        self._watch.skipped, self._watch.in_a_row = state["skipped"], state["skipped_in_a_row"]

    @property
    def sums(self) -> torch.Tensor:
        """What this process has summed up of the epoch so far, for its averages; may be set to go on from there."""
        return self._sums

    @sums.setter
    def sums(self, value: torch.Tensor) -> None:
        self._sums = value.to(self._process.device)

    def begin_epoch(self, epoch: int) -> None:
        """Start an epoch at its beginning."""
        self.epoch, self.position, self._sums = epoch, 0, self._zeros()
        self._watch.skipped = 0

    def train(self, batches: Iterable[PictureBatch], total: int) -> Iterator[None]:
        """Train on what is left of the epoch, `total` batches; yields after each step.

        Raises:
            UserError: the loss or its gradient is not finite ten steps in a row.
        """
        self.model.train()
        start, before, settings = time.monotonic(), self.position, self._settings
        done = self.position // settings.batch
        total += done
        with progress_bar(f"epoch {self.epoch}", total, self._process.is_main) as advance:
            advance(done)
            for group in _groups(self._ready(batches), settings.accumulation):
                loss, norm = self._take_step(group)
                done += len(group)
                advance(len(group))
                if done % settings.print_freq < len(group) or done == total:
                    self._watch.look()
                    rate = (self.position - before) / (time.monotonic() - start)
                    left = (settings.images - self.position) / rate
                    figures = {"loss": loss.item(), "grad_norm": norm.item(), "lr": self.learning_rate}
                    self.report(self.step, figures)
                    logger.info(
                        "epoch %d batch %d/%d loss %.4f lr %.3g %.2f images/s ETA %.0f s",
                        self.epoch, done, total, figures["loss"], figures["lr"], rate, left,
                    )  # fmt: skip
                yield

    def averages(self) -> Averages:
        """The epoch's averages over all processes."""
        return self._averages(self._sums)

    @torch.no_grad()
    def validate(self, batches: Iterable[PictureBatch], total: int, stop: Callable[[], bool]) -> Averages | None:
        """The losses over every image of the validation split once, over all processes; empty without images.

        Args:
            batches: of this process.
            total: how many batches the process with the most of them has.
            stop: called after each of these; where it says so, validation is abandoned, and None returned.
        """
        # DDP's forward would wait for processes that have a batch fewer.
        model = self.evaluated
        broadcast_state(model)  # BatchNorm's statistics differ between processes
        model.eval()
        sums, iterator = self._zeros(), self._ready(batches)
        for _ in range(total):
            if (batch := next(iterator, None)) is not None:
                self._add(sums, batch, self._loss(model, batch))
                self.broken += batch.broken
            if stop():
                return None
        return self._averages(sums)

    def _ready(self, batches: Iterable[PictureBatch]) -> Iterator[DistillBatch]:
        """The batches with their records, on the device."""
        device = self._process.device
        batches_of_records = self._waiting(with_records(batches, self._store, device))
        return on_device(batches_of_records, device, self.stage)

    def _waiting(self, batches: Iterator[DistillBatch]) -> Iterator[DistillBatch]:
        while True:
            with self.stage("wait for data"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _take_step(self, group: tuple[DistillBatch, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the last batch's loss and the gradient's norm."""
        self._guard.keep()
        losses = list(self._accumulate(group))
        with self.stage("optimiser"):
            norm = self._update(group)
        for batch, loss in zip(group, losses, strict=True):
            self._add(self._sums, batch, loss)
            self.broken += batch.broken
        self.step += 1
        self.position = min(self._settings.images, self.position + len(group) * self._settings.batch)
        if self.ema is not None:
            with self.stage("average"):
                self.ema.update(self.student, self.step)
        return losses[-1].total, norm

    def _accumulate(self, group: tuple[DistillBatch, ...]) -> Iterator[Loss]:
        for index, batch in enumerate(group):
            with self._synchronised(index == len(group) - 1):
                loss = self._loss(self.model, batch)
                with self.stage("backward"):
                    self._scaler.scale(loss.total / len(group)).backward()  # type: ignore[no-untyped-call]
            yield Loss(loss.total.detach(), loss.mse.detach(), loss.cosine.detach())

    def _synchronised(self, last: bool) -> AbstractContextManager[None]:
        if last or not isinstance(self.model, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def _update(self, group: tuple[DistillBatch, ...]) -> torch.Tensor:
        """Take the optimiser's step, unless the gradient is not finite; returns its norm before clipping."""
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = self.learning_rate
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self._settings.clip_norm or float("inf"))
        bad = ~norm.isfinite()
        self._watch.note(self.step, [image_id for batch in group for image_id in batch.image_ids], bad)
        if self._scaler.is_enabled():
            self._scaler.step(self._optimizer)
            self._scaler.update()
        else:
            apply_if_finite(self._optimizer, bad)
        self._guard.restore(bad)
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def _loss(self, model: nn.Module, batch: DistillBatch) -> Loss:
        device, manifest, settings = self._process.device, self._store.manifest, self._settings
        with self.stage("normalise"):
            pixels = normalise(batch.pixels, batch.content_sizes, manifest.preprocessing)
            if device.type == "cuda":
                pixels = pixels.contiguous(memory_format=torch.channels_last)
        with self.stage("targets"):
            teacher = self.targets(batch, pixels)
        dtype = settings.autocast
        with self.stage("forward"), torch.autocast(device.type, dtype, enabled=dtype is not None):
            student = model(pixels)
        with self.stage("loss"):
            valid = build_valid_mask(batch.content_sizes, manifest.preprocessing.image_size, manifest.embed_size)
            weights = (settings.pixel_wise, settings.cosine)
            return distillation_loss(student, teacher, valid, batch.weights, *weights, self._standardisation)

    def _zeros(self) -> torch.Tensor:
        return torch.zeros(4, device=self._process.device)

    @staticmethod
    def _add(sums: torch.Tensor, batch: DistillBatch, loss: Loss) -> None:
        count = batch.weights.sum() * loss.total.isfinite()
        figures = torch.stack([loss.total, loss.mse, loss.cosine]).nan_to_num(0.0, 0.0, 0.0)
        sums += torch.cat([figures * count, count[None]])

    def _averages(self, sums: torch.Tensor) -> Averages:
        total, mse, cosine, count = sum_over_processes(sums).tolist()
        if count == 0:
            return {}
        averages = {"loss": total / count, "mse": mse / count, "cosine": cosine / count}
        if self._settings.variance:
            averages["relative_mse"] = averages["mse"] / self._settings.variance
        return averages


def _groups(batches: Iterable[DistillBatch], size: int) -> Iterator[tuple[DistillBatch, ...]]:
    """Consecutive groups of `size` batches; the last may be smaller (itertools.batched, which Python 3.11 lacks)."""
    iterator = iter(batches)
    while group := tuple(islice(iterator, size)):
        yield group
