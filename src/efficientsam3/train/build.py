"""What a training works with, built from its configuration; nothing is written."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader, Subset

from efficientsam3.config.schema import TrainConfig
from efficientsam3.data.loader import build_loader
from efficientsam3.models.build import build_student
from efficientsam3.models.gradient_checkpointing import enable_gradient_checkpointing
from efficientsam3.models.student import Student
from efficientsam3.runtime.device import autocast_dtype
from efficientsam3.runtime.distributed import Process
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.train.dataset import PictureBatch
from efficientsam3.train.loop import StepSettings, Trainer
from efficientsam3.train.optimizer import build_optimizer, learning_rate_factor, scale_learning_rate
from efficientsam3.train.plan import TrainPlan
from efficientsam3.train.resume import images_per_step, restore, seed_process
from efficientsam3.train.sampler import EpochSampler

logger = logging.getLogger(LOGGER_NAME)


@dataclass(frozen=True)
class Training:
    """A trainer and what feeds it."""

    trainer: Trainer
    sampler: EpochSampler  # of the training images
    train_loader: DataLoader[PictureBatch]
    val_loader: DataLoader[PictureBatch]


def build_training(config: TrainConfig, plan: TrainPlan, process: Process, resumed: dict[str, Any] | None) -> Training:
    """Build what `plan` describes, at the beginning or where the checkpoint content `resumed` was saved.

    Raises:
        UserError: the weights to start from do not fit, see `build_student`.
    """
    sampler = _train_sampler(config, plan, process)
    # Under DDP every process starts from rank 0's weights, so the others need none of their own.
    needs_weights = resumed is None and process.is_main
    student = (
        build_student(plan.architecture, config.MODEL.PRETRAINED, plan.standardisation)
        if needs_weights
        else Student(plan.architecture)
    )
    trainer = _build_trainer(config, plan, process, student)
    if resumed is None:
        seed_process(config.SEED, 0, process)
    else:
        restore(resumed, trainer, process, config.SEED)
    return Training(trainer, sampler, *_loaders(config, plan, process, sampler))


def _loaders(
    config: TrainConfig, plan: TrainPlan, process: Process, sampler: EpochSampler
) -> tuple[DataLoader[PictureBatch], DataLoader[PictureBatch]]:
    """Of the training and of the validation images."""
    loader = partial(build_loader, batch_size=config.DATA.BATCH_SIZE, num_workers=config.DATA.NUM_WORKERS)
    train_loader = loader(plan.train, collate=plan.train.collate, device=process.device, sampler=sampler)
    # Validation takes every image exactly once: no padding, and nothing collective within the loop.
    share = Subset(plan.val, range(process.rank, len(plan.val), process.world_size))
    return train_loader, loader(share, collate=plan.val.collate, device=process.device)


def _train_sampler(config: TrainConfig, plan: TrainPlan, process: Process) -> EpochSampler:
    """A new order each epoch, by SEED and epoch."""
    window = config.DISTILL.READ_WINDOW
    order = plan.train.file_order() if window else None
    return EpochSampler(len(plan.train), process.world_size, process.rank, config.SEED, order, window)


def _build_trainer(config: TrainConfig, plan: TrainPlan, process: Process, student: Student) -> Trainer:
    settings = config.TRAIN
    # cuDNN's convolutions are faster on channels_last; CPUs were measured, see docs/training.md.
    layout = torch.channels_last if process.device.type == "cuda" else torch.preserve_format
    student.to(process.device, memory_format=layout)  # type: ignore[call-overload]
    # Copied before the student's forward is wrapped: the average computes with its own.
    ema = ModelEmaV3(student, settings.EMA, use_warmup=True) if settings.EMA else None
    model = _wrap(config, process, student)
    rate_at = _schedule(config, plan, process)
    step_settings = StepSettings(
        pixel_wise=config.DISTILL.PIXEL_WISE,
        cosine=config.DISTILL.COSINE,
        images=len(plan.train),
        batch=config.DATA.BATCH_SIZE * process.world_size,
        accumulation=settings.ACCUMULATION_STEPS,
        clip_norm=settings.CLIP_GRAD,
        autocast=autocast_dtype(process.device) if config.AMP_ENABLE else None,
        print_freq=config.PRINT_FREQ,
        variance=None if plan.statistics is None else float(plan.statistics.variance.mean()),
        standardisation=plan.standardisation,
    )
    optimizer = build_optimizer(student, rate_at(0), settings.WEIGHT_DECAY)
    return Trainer(model, optimizer, rate_at, plan.store, process, step_settings, ema)


def _wrap(config: TrainConfig, process: Process, student: Student) -> nn.Module:
    if config.TRAIN.USE_CHECKPOINT:
        enable_gradient_checkpointing(student.backbone)
    if config.TRAIN.USE_SYNC_BN:
        convert_sync_batchnorm(student)
    if config.TRAIN.COMPILE:
        student.compile()  # in place: state-dict keys stay as they are
    if process.world_size == 1:
        return student
    device_ids = [process.device] if process.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(student, device_ids=device_ids)


def _schedule(config: TrainConfig, plan: TrainPlan, process: Process) -> Callable[[int], float]:
    settings, total_batch = config.TRAIN, images_per_step(config, process.world_size)
    rate = scale_learning_rate(settings.BASE_LR, total_batch, settings.LR_SCALING)
    logger.info(
        "learning rate %.3g (BASE_LR %g, %s rule, %d images a step)",
        rate,
        settings.BASE_LR,
        settings.LR_SCALING,
        total_batch,
    )
    steps = math.ceil(len(plan.train) / total_batch)
    factor = partial(
        learning_rate_factor,
        total_steps=steps * settings.EPOCHS,
        warmup_steps=round(steps * settings.WARMUP_EPOCHS),
        floor=settings.MIN_LR / settings.BASE_LR,
    )
    return lambda step: rate * factor(step)
