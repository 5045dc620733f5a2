"""The training: from a configuration to checkpoints."""

import json
import logging
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.utils.data import DistributedSampler, Subset
from torch.utils.tensorboard import SummaryWriter

from efficientsam3.checkpoints.training import (
    checkpoint_path,
    latest_checkpoint,
    load_training_checkpoint,
    save_training_checkpoint,
)
from efficientsam3.config.schema import TrainConfig
from efficientsam3.data.dataset import build_loader
from efficientsam3.distill.loop import Averages, StepSettings, Trainer
from efficientsam3.distill.optimizer import build_optimizer, learning_rate_factor, scale_learning_rate
from efficientsam3.distill.plan import TrainPlan, plan_training
from efficientsam3.distill.sampler import WindowSampler
from efficientsam3.models.build import build_student
from efficientsam3.models.checkpointing import enable_gradient_checkpointing
from efficientsam3.models.student import Student
from efficientsam3.runtime.device import autocast_dtype
from efficientsam3.runtime.distributed import Process, all_gather
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import write_text
from efficientsam3.runtime.logging import LOGGER_NAME

logger = logging.getLogger(LOGGER_NAME)
METRICS_NAME = "metrics.jsonl"


@dataclass(frozen=True)
class TrainSummary:
    """How a training ended."""

    checkpoint: Path
    epochs: int
    metrics: dict[str, float]  # of the last epoch
    broken: tuple[str, ...]  # a sentence for each picture that could not be read


def check_training(config: TrainConfig) -> None:
    """Check everything that a training needs, the weights it starts from included, without writing anything.

    Raises:
        UserError: see `plan_training` and `build_student`; or the checkpoint to continue from is damaged or of another
            model.
    """
    plan = plan_training(config)
    if _find_checkpoint(config, plan) is None and config.MODEL.PRETRAINED is not False:
        build_student(plan.architecture, config.MODEL.PRETRAINED)


def train(config: TrainConfig, process: Process) -> TrainSummary:
    """Train a student, continuing from its last checkpoint where there is one.

    Raises:
        UserError: see `plan_training`; a checkpoint is of another model; or the loss is not finite ten times in a row.
    """
    plan = plan_training(config)
    resumed = _find_checkpoint(config, plan)
    torch.manual_seed(config.SEED)
    sampler = _train_sampler(config, plan, process)
    loader = partial(build_loader, batch_size=config.DATA.BATCH_SIZE, num_workers=config.DATA.NUM_WORKERS)
    train_loader = loader(plan.train, collate=plan.train.collate, device=process.device, sampler=sampler)
    # Validation takes every image exactly once: no padding, and nothing collective within the loop.
    share = Subset(plan.val, range(process.rank, len(plan.val), process.world_size))
    val_loader = loader(share, collate=plan.val.collate, device=process.device)
    # Under DDP every process starts from rank 0's weights, so the others need none of their own.
    needs_weights = resumed is None and process.is_main
    student = build_student(plan.architecture, config.MODEL.PRETRAINED) if needs_weights else Student(plan.architecture)
    trainer = _build_trainer(config, plan, process, student, len(train_loader))
    start = 0 if resumed is None else _restore(trainer, student, resumed)
    _announce(config, plan, process, trainer, start)
    tracker = _Tracker(config, process, start)
    path = checkpoint_path(config.output_dir, start - 1)
    broken: list[str] = []
    for epoch in range(start, config.TRAIN.EPOCHS):
        sampler.set_epoch(epoch)
        averages, unread = trainer.train_epoch(train_loader, epoch)
        validation, unread_val = trainer.validate(val_loader)
        broken += unread + unread_val
        tracker.record(epoch, trainer, averages, validation)
        if (epoch + 1) % config.SAVE_FREQ == 0 or epoch + 1 == config.TRAIN.EPOCHS:
            path = checkpoint_path(config.output_dir, epoch)
            if process.is_main:
                save_training_checkpoint(path, _checkpoint(config, plan, trainer, student, epoch))
    tracker.close()
    everyone = sorted({sentence for of_rank in all_gather(broken) for sentence in of_rank})
    for sentence in everyone:
        logger.warning("skipped: %s", sentence)
    logger.info("done: %s", path)
    return TrainSummary(path, config.TRAIN.EPOCHS, tracker.last, tuple(everyone))


def _find_checkpoint(config: TrainConfig, plan: TrainPlan) -> dict[str, Any] | None:
    path = config.MODEL.RESUME
    if path is None and config.TRAIN.AUTO_RESUME:
        path = latest_checkpoint(config.output_dir)
    if path is None:
        return None
    content = load_training_checkpoint(path)
    if content["architecture"] != asdict(plan.architecture):
        raise UserError(
            f"Checkpoint {path} is of {content['architecture']}, not of {asdict(plan.architecture)}: give another "
            "OUTPUT or --resume, or set TRAIN.AUTO_RESUME false."
        )
    logger.info("continuing from %s", path)
    return content


def _train_sampler(config: TrainConfig, plan: TrainPlan, process: Process) -> DistributedSampler[Any]:
    """A new order each epoch, by SEED and epoch; a few images repeat so that all processes take as many steps."""
    if window := config.DISTILL.READ_WINDOW:
        return WindowSampler(plan.train, plan.train.file_order(), window, process.world_size, process.rank, config.SEED)
    return DistributedSampler(plan.train, process.world_size, process.rank, shuffle=True, seed=config.SEED)


def _build_trainer(config: TrainConfig, plan: TrainPlan, process: Process, student: Student, batches: int) -> Trainer:
    settings = config.TRAIN
    student.to(process.device)
    if settings.USE_CHECKPOINT:
        enable_gradient_checkpointing(student.backbone)
    if settings.USE_SYNC_BN:
        convert_sync_batchnorm(student)
    total_batch = config.DATA.BATCH_SIZE * process.world_size * settings.ACCUMULATION_STEPS
    rate = scale_learning_rate(settings.BASE_LR, total_batch, settings.LR_SCALING)
    logger.info(
        "learning rate %.3g (BASE_LR %g, %s rule, %d images a step)",
        rate,
        settings.BASE_LR,
        settings.LR_SCALING,
        total_batch,
    )
    optimizer = build_optimizer(student, rate, settings.WEIGHT_DECAY)
    steps = -(-batches // settings.ACCUMULATION_STEPS)
    factor = partial(
        learning_rate_factor,
        total_steps=steps * settings.EPOCHS,
        warmup_steps=round(steps * settings.WARMUP_EPOCHS),
        floor=settings.MIN_LR / settings.BASE_LR,
    )
    model: nn.Module = student
    if process.world_size > 1:
        device_ids = [process.device] if process.device.type == "cuda" else None
        model = nn.parallel.DistributedDataParallel(student, device_ids=device_ids)
    return Trainer(
        model,
        optimizer,
        lambda step: rate * factor(step),
        plan.store,
        process,
        StepSettings(
            pixel_wise=config.DISTILL.PIXEL_WISE,
            cosine=config.DISTILL.COSINE,
            accumulation=settings.ACCUMULATION_STEPS,
            clip_norm=settings.CLIP_GRAD,
            autocast=autocast_dtype(process.device) if config.AMP_ENABLE else None,
            print_freq=config.PRINT_FREQ,
        ),
    )


def _restore(trainer: Trainer, student: Student, content: dict[str, Any]) -> int:
    """Load a checkpoint's content; returns the epoch to start with."""
    student.load_state_dict(content["model"])
    trainer.load_state_dict(content)
    return int(content["epoch"]) + 1


def _checkpoint(config: TrainConfig, plan: TrainPlan, trainer: Trainer, student: Student, epoch: int) -> dict[str, Any]:
    return {
        "model": {key: value.detach().cpu() for key, value in student.state_dict().items()},
        "architecture": asdict(plan.architecture),
        "preprocessing": json.loads(plan.store.manifest.preprocessing.model_dump_json()),
        "epoch": epoch,
        "config": config.model_dump(mode="json"),
        **trainer.state_dict(),
    }


def _announce(config: TrainConfig, plan: TrainPlan, process: Process, trainer: Trainer, start: int) -> None:
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    logger.info(
        "%s: %.2fM parameters, %d training and %d validation images, %d processes on %s, epochs %d to %d",
        config.MODEL.BACKBONE,
        parameters / 1e6,
        len(plan.train),
        len(plan.val),
        process.world_size,
        process.device.type,
        start,
        config.TRAIN.EPOCHS - 1,
    )
    if plan.without_embedding:
        logger.warning(
            "%d images have no embedding in %s and are left out; run the export again to add them",
            plan.without_embedding,
            plan.store.directory,
        )
    if len(plan.val) == 0:
        logger.warning("the val split has no images with embeddings: there will be no validation figures")


class _Tracker:
    """Writes each epoch's figures to the log, `metrics.jsonl` and TensorBoard; on rank 0 only."""

    def __init__(self, config: TrainConfig, process: Process, start: int) -> None:
        self.last: dict[str, float] = {}
        self._path = config.output_dir / METRICS_NAME
        self._board = SummaryWriter(str(config.output_dir), purge_step=start) if process.is_main else None
        if process.is_main:
            # Epochs that will be trained again, after a resume from an earlier one, lose their old lines.
            lines = self._path.read_text().splitlines() if self._path.exists() else []
            write_text(self._path, "".join(f"{line}\n" for line in lines if json.loads(line)["epoch"] < start))

    def record(self, epoch: int, trainer: Trainer, training: Averages, validation: Averages) -> None:
        """Note one epoch's averages."""
        figures = {f"train/{name}": value for name, value in training.items()}
        figures |= {f"val/{name}": value for name, value in validation.items()}
        self.last = {**figures, "lr": trainer.learning_rate}
        logger.info("epoch %d: %s", epoch, ", ".join(f"{name} {value:.4g}" for name, value in self.last.items()))
        if self._board is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"epoch": epoch, "step": trainer.step, **self.last}) + "\n")
        for name, value in self.last.items():
            self._board.add_scalar(name, value, epoch)
        self._board.flush()

    def close(self) -> None:
        """Finish the TensorBoard file."""
        if self._board is not None:
            self._board.close()
