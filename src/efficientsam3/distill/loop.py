"""One epoch of training or validation."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from efficientsam3.data.preprocess import build_valid_mask, normalise
from efficientsam3.distill.dataset import DistillBatch
from efficientsam3.distill.losses import Loss, distillation_loss
from efficientsam3.embeddings.reader import EmbeddingStore
from efficientsam3.runtime.distributed import Process, sum_over_processes
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.runtime.progress import progress_bar

logger = logging.getLogger(LOGGER_NAME)
Averages = dict[str, float]  # loss, mse, cosine
_MOST_SKIPPED = 10


@dataclass(frozen=True)
class StepSettings:
    """How a step is computed."""

    pixel_wise: float
    cosine: float
    accumulation: int
    clip_norm: float  # 0: no clipping
    autocast: torch.dtype | None  # None: float32
    print_freq: int


class Trainer:
    """A student with its optimiser, taking steps."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        rate_at: Callable[[int], float],
        store: EmbeddingStore,
        process: Process,
        settings: StepSettings,
    ) -> None:
        """Set up.

        Args:
            model: the student, or DistributedDataParallel around it.
            optimizer: of the student's parameters.
            rate_at: the learning rate of a 0-based optimiser step.
            store: decodes the batches' records.
            process: this process among its peers.
            settings: how a step is computed.
        """
        self.model, self.step = model, 0
        self._optimizer, self._rate_at, self._store = optimizer, rate_at, store
        self._process, self._settings = process, settings
        # float16 needs its gradients scaled; bfloat16 and float32 do not.
        self._scaler = torch.amp.GradScaler(process.device.type, enabled=settings.autocast == torch.float16)
        self._skipped = 0

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        return self._rate_at(self.step)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the weights."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.step = int(state["step"])

    def train_epoch(self, batches: Iterable[DistillBatch], epoch: int) -> tuple[Averages, list[str]]:
        """Train on every batch once.

        Returns:
            the averages over all processes, and a sentence for each picture that could not be read here.

        Raises:
            UserError: the loss or its gradient is not finite ten steps in a row.
        """
        self.model.train()
        sums, broken, start, images = self._zeros(), list[str](), time.monotonic(), 0
        total = len(batches)  # type: ignore[arg-type]
        done = 0
        with progress_bar(f"epoch {epoch}", total, self._process.is_main) as advance:
            for group in _groups(batches, self._settings.accumulation):
                losses = list(self._accumulate(group))
                self._update(group)
                for batch, loss in zip(group, losses, strict=True):
                    self._add(sums, batch, loss)
                    broken += batch.broken
                    images += len(batch.image_ids) * self._process.world_size
                done += len(group)
                advance(len(group))
                if done % self._settings.print_freq < len(group) or done == total:
                    rate = images / (time.monotonic() - start)
                    remaining = (total - done) * (time.monotonic() - start) / done
                    logger.info(
                        "epoch %d batch %d/%d loss %.4f lr %.3g %.2f images/s ETA %.0f s",
                        epoch, done, total, losses[-1].total.item(), self.learning_rate, rate, remaining,
                    )  # fmt: skip
        return self._averages(sums), broken

    @torch.no_grad()
    def validate(self, batches: Iterable[DistillBatch]) -> tuple[Averages, list[str]]:
        """The losses over every image of the validation split once, over all processes; empty without images."""
        self.model.eval()
        # DDP's forward would wait for processes that have a batch fewer.
        model = self.model.module if isinstance(self.model, nn.parallel.DistributedDataParallel) else self.model
        sums, broken = self._zeros(), list[str]()
        for batch in batches:
            self._add(sums, batch, self._loss(model, batch))
            broken += batch.broken
        return self._averages(sums), broken

    def _accumulate(self, group: tuple[DistillBatch, ...]) -> Iterator[Loss]:
        for index, batch in enumerate(group):
            with self._synchronised(index == len(group) - 1):
                loss = self._loss(self.model, batch)
                self._scaler.scale(loss.total / len(group)).backward()  # type: ignore[no-untyped-call]
            yield Loss(loss.total.detach(), loss.mse.detach(), loss.cosine.detach())

    def _synchronised(self, last: bool) -> AbstractContextManager[None]:
        if last or not isinstance(self.model, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def _update(self, group: tuple[DistillBatch, ...]) -> None:
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = self.learning_rate
        self._scaler.unscale_(self._optimizer)
        limit = self._settings.clip_norm or float("inf")
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        if bool(norm.isfinite()):
            self._skipped = 0
            self._scaler.step(self._optimizer)
        else:
            self._skip(group)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def _skip(self, group: tuple[DistillBatch, ...]) -> None:
        self._skipped += 1
        names = ", ".join(image_id for batch in group for image_id in batch.image_ids)
        logger.warning("step %d: the loss or its gradient is not finite, step skipped (images %s)", self.step, names)
        if self._skipped == _MOST_SKIPPED:
            raise UserError(
                f"{_MOST_SKIPPED} steps in a row had no finite gradient (last images: {names}): lower TRAIN.BASE_LR, "
                "use --disable-amp, or check those pictures' embeddings."
            )

    def _loss(self, model: nn.Module, batch: DistillBatch) -> Loss:
        device, manifest = self._process.device, self._store.manifest
        sizes = batch.content_sizes.to(device)
        pixels = normalise(batch.pixels.to(device, non_blocking=True), sizes, manifest.preprocessing)
        _, teacher = self._store.decode(batch.records.to(device, non_blocking=True))
        dtype = self._settings.autocast
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            student = model(pixels)
        valid = build_valid_mask(sizes, manifest.preprocessing.image_size, manifest.embed_size)
        weights = batch.weights.to(device)
        return distillation_loss(student, teacher, valid, weights, self._settings.pixel_wise, self._settings.cosine)

    def _zeros(self) -> torch.Tensor:
        return torch.zeros(4, device=self._process.device)

    @staticmethod
    def _add(sums: torch.Tensor, batch: DistillBatch, loss: Loss) -> None:
        count = batch.weights.sum().to(sums.device)
        sums += torch.stack([loss.total * count, loss.mse * count, loss.cosine * count, count])

    @staticmethod
    def _averages(sums: torch.Tensor) -> Averages:
        total, mse, cosine, count = sum_over_processes(sums).tolist()
        if count == 0:
            return {}
        return {"loss": total / count, "mse": mse / count, "cosine": cosine / count}


def _groups(batches: Iterable[DistillBatch], size: int) -> Iterator[tuple[DistillBatch, ...]]:
    """Consecutive groups of `size` batches; the last may be smaller (itertools.batched, which Python 3.11 lacks)."""
    iterator = iter(batches)
    while group := tuple(islice(iterator, size)):
        yield group
