"""The training: from a configuration to checkpoints."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader, Subset

from efficientsam3.checkpoints.normalisation import Normalisation
from efficientsam3.config.schema import TrainConfig
from efficientsam3.data.dataset import build_loader
from efficientsam3.distill.loop import Averages, StepSettings, Trainer
from efficientsam3.distill.online import OnlineTeacher, online_teacher
from efficientsam3.distill.optimizer import build_optimizer, learning_rate_factor, scale_learning_rate
from efficientsam3.distill.plan import TrainPlan, plan_training
from efficientsam3.distill.resume import find_checkpoint, images_per_step, restore, seed_process
from efficientsam3.distill.sampler import EpochSampler
from efficientsam3.distill.saving import Saver
from efficientsam3.distill.tracker import Tracker
from efficientsam3.models.build import build_student
from efficientsam3.models.checkpointing import enable_gradient_checkpointing
from efficientsam3.models.student import Student
from efficientsam3.runtime.device import autocast_dtype
from efficientsam3.runtime.distributed import Process, StopVote, all_gather
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.runtime.signals import StopRequest, report_saved

logger = logging.getLogger(LOGGER_NAME)


@dataclass(frozen=True)
class Observers:
    """What looks at the student after each epoch, on the main process, in eval mode and without gradients."""

    probe: Callable[[nn.Module], dict[str, float]] | None = (
        None  # its first figure, larger being better, picks the best
    )
    pictures: Callable[[nn.Module, TrainPlan], Figure] | None = None  # teacher's features beside the student's


@dataclass(frozen=True)
class TrainSummary:
    """How a training ended."""

    checkpoint: Path  # what was saved last
    epochs: int  # how many are complete
    metrics: dict[str, float]  # of the last epoch
    broken: tuple[str, ...]  # a sentence for each picture that could not be read
    stopped: bool  # whether it was asked to end early


def check_training(config: TrainConfig, world_size: int = 1, allow_config_change: bool = False) -> None:
    """Check everything that a training needs, the weights it starts from included, without writing anything.

    Raises:
        UserError: see `plan_training` and `build_student`; or the checkpoint to continue from is damaged, of another
            model, or of another configuration.
    """
    plan = plan_training(config)
    resumed = find_checkpoint(config, plan, world_size, allow_config_change)
    if resumed is None and config.MODEL.PRETRAINED is not False:
        build_student(plan.architecture, config.MODEL.PRETRAINED, plan.normalisation)


def train(
    config: TrainConfig,
    process: Process,
    stop: StopRequest | None = None,
    observers: Observers | None = None,
    allow_config_change: bool = False,
) -> TrainSummary:
    """Train a student, continuing from its last checkpoint where there is one.

    Args:
        config: of the training.
        process: this process among its peers.
        stop: once it says so on any process, all of them save and end after the same step.
        observers: what looks at the student after each epoch.
        allow_config_change: continue also from a checkpoint of another configuration.

    Raises:
        UserError: see `check_training`; or the gradient is not finite ten times in a row.
    """
    plan = plan_training(config)
    resumed = find_checkpoint(config, plan, process.world_size, allow_config_change)
    if resumed is not None and plan.normalisation is not None:
        # The store's statistics may have grown since, but what the student gives is standardised by these.
        plan = replace(plan, normalisation=Normalisation(**resumed["normalisation"]))
    with online_teacher(config, plan.store, process) as online:
        torch.manual_seed(config.SEED)
        run = _prepare(config, plan, process, resumed, observers or Observers())
        if online is not None:
            run.online, run.trainer.targets = online, online
        stop = stop or StopRequest()
        run.vote = StopVote(lambda: stop.requested or process.is_orphan())
        complete = _run_epochs(run)
    run.tracker.close()
    everyone = sorted({sentence for of_rank in all_gather(run.trainer.broken) for sentence in of_rank})
    for sentence in everyone:
        logger.warning("skipped: %s", sentence)
    if not complete:
        report_saved()
        logger.info("asked to end: all is saved in %s, the same command goes on from there", run.saver.path)
    logger.info("done: %s", run.saver.path)
    metrics = run.tracker.lines[-1] if run.tracker.lines else {}
    return TrainSummary(run.saver.path, len(run.tracker.lines), metrics, tuple(everyone), not complete)


@dataclass
class _Run:
    config: TrainConfig
    process: Process
    plan: TrainPlan
    trainer: Trainer
    tracker: Tracker
    saver: Saver
    observers: Observers
    sampler: EpochSampler
    train_loader: DataLoader[Any]
    val_loader: DataLoader[Any]
    vote: StopVote = field(init=False)
    online: OnlineTeacher | None = None


def _prepare(
    config: TrainConfig, plan: TrainPlan, process: Process, resumed: dict[str, Any] | None, observers: Observers
) -> _Run:
    sampler = _train_sampler(config, plan, process)
    # Under DDP every process starts from rank 0's weights, so the others need none of their own.
    needs_weights = resumed is None and process.is_main
    student = (
        build_student(plan.architecture, config.MODEL.PRETRAINED, plan.normalisation)
        if needs_weights
        else Student(plan.architecture)
    )
    trainer = _build_trainer(config, plan, process, student)
    if resumed is None:
        seed_process(config.SEED, 0, process)
    else:
        restore(resumed, trainer, process, config.SEED)
    tracker = Tracker(config.output_dir, process.is_main, trainer.epoch, trainer.step)
    trainer.report = tracker.note_step
    _announce(config, plan, process, trainer)
    saver = Saver(config, plan, process, trainer)
    loaders = _loaders(config, plan, process, sampler)
    return _Run(config, process, plan, trainer, tracker, saver, observers, sampler, *loaders)


def _loaders(
    config: TrainConfig, plan: TrainPlan, process: Process, sampler: EpochSampler
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Of the training and of the validation images."""
    loader = partial(build_loader, batch_size=config.DATA.BATCH_SIZE, num_workers=config.DATA.NUM_WORKERS)
    train_loader = loader(plan.train, collate=plan.train.collate, device=process.device, sampler=sampler)
    # Validation takes every image exactly once: no padding, and nothing collective within the loop.
    share = Subset(plan.val, range(process.rank, len(plan.val), process.world_size))
    return train_loader, loader(share, collate=plan.val.collate, device=process.device)


def _run_epochs(run: _Run) -> bool:
    """Returns whether all epochs are complete; where not, the run was asked to end, and is saved."""
    config, trainer = run.config, run.trainer
    for epoch in range(trainer.epoch, config.TRAIN.EPOCHS):
        run.sampler.set_epoch(epoch, trainer.position)
        for _ in trainer.train(run.train_loader, len(run.train_loader)):
            stops = run.vote.agreed()
            if stops or run.saver.is_due():
                run.saver.save_step()
            if stops:
                return False
        validation = _validate(run)
        if validation is None:
            run.saver.save_step()
            return False
        training = {f"train/{name}": value for name, value in trainer.averages().items()}
        skipped = {"train/skipped_steps": trainer.skipped}
        run.tracker.record(epoch, trainer.step, {**training, **skipped, **validation, "lr": trainer.learning_rate})
        if (epoch + 1) % config.SAVE_FREQ == 0 or epoch + 1 == config.TRAIN.EPOCHS:
            run.saver.save_epoch(run.tracker.lines)
        trainer.begin_epoch(epoch + 1)
        if run.online is not None:
            run.online.commit()
    return True


def _validate(run: _Run) -> Averages | None:
    size = run.config.DATA.BATCH_SIZE
    most = math.ceil(math.ceil(len(run.plan.val) / run.process.world_size) / size)
    losses = run.trainer.validate(run.val_loader, most, run.vote.agreed)
    if losses is None:
        return None
    figures = {f"val/{name}": value for name, value in losses.items()}
    if run.process.is_main:
        with torch.no_grad():
            if run.observers.probe is not None:
                probed = run.observers.probe(run.trainer.observed)
                figures |= {f"probe/{name}": value for name, value in probed.items()}
            if run.observers.pictures is not None and len(run.plan.val) and not run.config.DISTILL.ONLINE:
                run.tracker.show(run.trainer.step, run.observers.pictures(run.trainer.observed, run.plan))
    return figures


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
        normalisation=plan.normalisation,
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


def _announce(config: TrainConfig, plan: TrainPlan, process: Process, trainer: Trainer) -> None:
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    logger.info(
        "%s: %.2fM parameters, %d training and %d validation images, %d processes on %s, epochs %d to %d",
        config.MODEL.BACKBONE,
        parameters / 1e6,
        len(plan.train),
        len(plan.val),
        process.world_size,
        process.device.type,
        trainer.epoch,
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
