"""The training: from a configuration to checkpoints."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from efficientsam3.checkpoints.standardisation import Standardisation
from efficientsam3.config.schema import TrainConfig
from efficientsam3.models.build import build_student
from efficientsam3.runtime.distributed import Process, StopVote, all_gather
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.runtime.signals import StopRequest, report_saved
from efficientsam3.train.build import Training, build_training
from efficientsam3.train.loop import Averages, Trainer
from efficientsam3.train.plan import TrainPlan, plan_training
from efficientsam3.train.resume import find_checkpoint
from efficientsam3.train.saving import Saver
from efficientsam3.train.targets import OnlineTeacher, online_teacher
from efficientsam3.train.tracker import Tracker

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
        build_student(plan.architecture, config.MODEL.PRETRAINED, plan.standardisation)


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
    if resumed is not None and plan.standardisation is not None:
        # The store's statistics may have grown since, but what the student gives is standardised by these.
        plan = replace(plan, standardisation=Standardisation(**resumed["normalisation"]))
    with online_teacher(config, plan.store, process) as online:
        torch.manual_seed(config.SEED)
        run = _prepare(config, plan, process, resumed, observers or Observers())
        if online is not None:
            run.online, run.training.trainer.targets = online, online
        stop = stop or StopRequest()
        run.vote = StopVote(lambda: stop.requested or process.is_orphan())
        complete = _run_epochs(run)
    run.tracker.close()
    everyone = sorted({sentence for of_rank in all_gather(run.training.trainer.broken) for sentence in of_rank})
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
    training: Training
    tracker: Tracker
    saver: Saver
    observers: Observers
    vote: StopVote = field(init=False)
    online: OnlineTeacher | None = None


def _prepare(
    config: TrainConfig, plan: TrainPlan, process: Process, resumed: dict[str, Any] | None, observers: Observers
) -> _Run:
    training = build_training(config, plan, process, resumed)
    trainer = training.trainer
    tracker = Tracker(config.output_dir, process.is_main, trainer.epoch, trainer.step)
    trainer.report = tracker.note_step
    _announce(config, plan, process, trainer)
    return _Run(config, process, plan, training, tracker, Saver(config, plan, process, trainer), observers)


def _run_epochs(run: _Run) -> bool:
    """Returns whether all epochs are complete; where not, the run was asked to end, and is saved."""
    config, training, trainer = run.config, run.training, run.training.trainer
    for epoch in range(trainer.epoch, config.TRAIN.EPOCHS):
        training.sampler.set_epoch(epoch, trainer.position)
        for _ in trainer.train(training.train_loader, len(training.train_loader)):
            stops = run.vote.agreed()
            if stops or run.saver.is_due():
                run.saver.save_step()
            if stops:
                return False
        validation = _validate(run)
        if validation is None:
            run.saver.save_step()
            return False
        figures = {f"train/{name}": value for name, value in trainer.averages().items()}
        skipped = {"train/skipped_steps": trainer.skipped}
        run.tracker.record(epoch, trainer.step, {**figures, **skipped, **validation, "lr": trainer.learning_rate})
        if (epoch + 1) % config.SAVE_FREQ == 0 or epoch + 1 == config.TRAIN.EPOCHS:
            run.saver.save_epoch(run.tracker.lines)
        trainer.begin_epoch(epoch + 1)
        if run.online is not None:
            run.online.commit()
    return True


def _validate(run: _Run) -> Averages | None:
    size, trainer = run.config.DATA.BATCH_SIZE, run.training.trainer
    most = math.ceil(math.ceil(len(run.plan.val) / run.process.world_size) / size)
    losses = trainer.validate(run.training.val_loader, most, run.vote.agreed)
    if losses is None:
        return None
    figures = {f"val/{name}": value for name, value in losses.items()}
    if run.process.is_main:
        with torch.no_grad():
            if run.observers.probe is not None:
                probed = run.observers.probe(trainer.observed)
                figures |= {f"probe/{name}": value for name, value in probed.items()}
            if run.observers.pictures is not None and len(run.plan.val) and not run.config.DISTILL.ONLINE:
                run.tracker.show(trainer.step, run.observers.pictures(trainer.observed, run.plan))
    return figures


def _announce(config: TrainConfig, plan: TrainPlan, process: Process, trainer: Trainer) -> None:
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    logger.info(
        "%s: %.2fM parameters, %d training and %d validation images, %d process(es) on %s, %d of %d epochs done",
        config.MODEL.BACKBONE,
        parameters / 1e6,
        len(plan.train),
        len(plan.val),
        process.world_size,
        process.device.type,
        trainer.epoch,
        config.TRAIN.EPOCHS,
    )
    if trainer.epoch >= config.TRAIN.EPOCHS:
        logger.info("all %d epochs are trained already", config.TRAIN.EPOCHS)
    if plan.without_embedding:
        logger.warning(
            "%d images have no embedding in %s and are left out; run the export again to add them",
            plan.without_embedding,
            plan.store.directory,
        )
    if len(plan.val) == 0:
        logger.warning("the val split has no images with embeddings: there will be no validation figures")
