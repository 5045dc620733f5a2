"""The training: from a plan to checkpoints."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from efficientsam3.config.schema import TrainConfig
from efficientsam3.models.build import build_student
from efficientsam3.runtime.distributed import Process, StopVote, all_gather, on_main
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.runtime.signals import StopRequest, report_saved
from efficientsam3.train.build import Training, build_training
from efficientsam3.train.folder import find_earlier, take_over
from efficientsam3.train.loop import Trainer
from efficientsam3.train.objective import Averages, Necks
from efficientsam3.train.plan import TrainPlan, plan_training
from efficientsam3.train.resume import find_checkpoint
from efficientsam3.train.saving import Saver
from efficientsam3.train.tracker import Tracker

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(LOGGER_NAME)


@dataclass(frozen=True)
class Observers:
    """What looks at the student after each epoch, on the main process, in eval mode and without gradients."""

    # Figures of the student and the necks trained with it; the first selects the best checkpoint (higher is better).
    probe: Callable[[nn.Module, Necks], dict[str, float]] | None = None
    # Feature images of teacher and student, side by side.
    features: Callable[[nn.Module], "Figure"] | None = None


@dataclass(frozen=True)
class TrainSummary:
    """How a training ended."""

    checkpoint: Path  # what was saved last
    epochs: int  # how many are complete
    metrics: dict[str, float]  # figures of the last epoch
    broken: tuple[str, ...]  # one sentence per image that could not be read
    stopped: bool  # whether it was asked to end early


def check_training(plan: TrainPlan, world_size: int = 1, allow_config_change: bool = False) -> None:
    """Check everything that a training needs, the weights it starts from included, without writing anything.

    Raises:
        UserError: see `build_student`; or the checkpoint to continue from is damaged, of another model, or of another
            configuration; or OUTPUT's metrics.jsonl is not of that checkpoint.
    """
    resumed = find_checkpoint(plan, world_size, allow_config_change)
    find_earlier(plan.output_dir, resumed, plan.resume)
    if resumed is None and plan.pretrained is not False:
        build_student(plan.architecture, plan.pretrained)


def train(
    config: TrainConfig,
    process: Process,
    stop: StopRequest | None = None,
    observers: Observers | None = None,
    allow_config_change: bool = False,
) -> TrainSummary:
    """Train what a configuration asks for; see `run_training`."""
    return run_training(plan_training(config), process, stop, observers, allow_config_change)


def run_training(
    plan: TrainPlan,
    process: Process,
    stop: StopRequest | None = None,
    observers: Observers | None = None,
    allow_config_change: bool = False,
    admitted: Callable[[], None] = lambda: None,
) -> TrainSummary:
    """Train a student, continuing from its last checkpoint where there is one.

    Args:
        plan: what to train.
        process: this process among its peers.
        stop: once it says so on any process, all of them save and end after the same step.
        observers: what looks at the student after each epoch.
        allow_config_change: continue also from a checkpoint of another configuration.
        admitted: called on the main process once nothing refuses the run any more, before it writes anything.

    Raises:
        UserError: see `check_training`; or the gradient is not finite ten times in a row.
    """
    resumed = find_checkpoint(plan, process.world_size, allow_config_change)
    earlier = on_main(process, lambda: find_earlier(plan.output_dir, resumed, plan.resume))
    tracker = Tracker(plan.output_dir, earlier.lines)
    stop = stop or StopRequest()
    with plan.targets.open(process):
        training = build_training(plan, process, resumed, tracker.note_step)
        trainer = training.trainer

        def begin() -> None:
            take_over(plan.output_dir, earlier)
            admitted()
            tracker.start(trainer.step)

        on_main(process, begin)
        _announce(plan, process, trainer)
        saver = Saver(plan, process, trainer, training.moments)
        vote = StopVote(lambda: stop.requested or process.is_orphan())
        complete = _run_epochs(_Run(plan, process, training, tracker, saver, observers or Observers(), vote))
    tracker.close()
    everyone = sorted({sentence for of_rank in all_gather(trainer.broken) for sentence in of_rank})
    for sentence in everyone:
        logger.warning("skipped: %s", sentence)
    if complete:
        logger.info("done: %s", saver.path)
    else:
        report_saved()
        logger.info("stopped as requested: all is saved in %s, the same command continues from there", saver.path)
    metrics = tracker.lines[-1] if tracker.lines else {}
    return TrainSummary(saver.path, len(tracker.lines), metrics, tuple(everyone), not complete)


@dataclass(frozen=True)
class _Run:
    plan: TrainPlan
    process: Process
    training: Training
    tracker: Tracker
    saver: Saver
    observers: Observers
    vote: StopVote


def _run_epochs(run: _Run) -> bool:
    """Returns whether all epochs are complete; where not, the run was asked to end, and is saved."""
    plan, training, trainer = run.plan, run.training, run.training.trainer
    epochs = plan.optimisation.epochs
    for epoch in range(trainer.epoch, epochs):
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
        if (epoch + 1) % plan.save_freq == 0 or epoch + 1 == epochs:
            run.saver.save_epoch(run.tracker.lines)
        trainer.begin_epoch(epoch + 1)
        plan.targets.end_epoch()
    return True


def _validate(run: _Run) -> Averages | None:
    plan, trainer = run.plan, run.training.trainer
    most = math.ceil(math.ceil(len(plan.val) / run.process.world_size) / plan.batch_size)
    losses = trainer.validate(run.training.val_loader, most, run.vote.agreed)
    if losses is None:
        return None
    figures = {f"val/{name}": value for name, value in losses.items()}
    if run.process.is_main:
        with torch.no_grad():
            if run.observers.probe is not None:
                probed = run.observers.probe(trainer.observed, trainer.evaluated_necks)
                figures |= {f"probe/{name}": value for name, value in probed.items()}
            if run.observers.features is not None and len(plan.val):
                run.tracker.show(trainer.step, run.observers.features(trainer.observed))
    return figures


def _announce(plan: TrainPlan, process: Process, trainer: Trainer) -> None:
    epochs = plan.optimisation.epochs
    parameters = sum(parameter.numel() for parameter in trainer.student.parameters())
    logger.info(
        "%s: %.2fM parameters, %d training and %d validation %s, %d process(es) on %s, %d of %d epochs done",
        plan.architecture.backbone,
        parameters / 1e6,
        len(plan.train),
        len(plan.val),
        plan.items,
        process.world_size,
        process.device.type,
        trainer.epoch,
        epochs,
    )
    for name, neck in plan.necks.items():
        logger.info("the %s's neck is trained with it, at %g times its learning rate", name, neck.rate)
    if trainer.epoch >= epochs:
        logger.info("all %d epochs are trained already", epochs)
    if plan.without_embedding:
        logger.warning(
            "%d %s have no embedding in the store and are skipped; run `%s` again to add them",
            plan.without_embedding,
            plan.items,
            plan.embedded_by,
        )
    if len(plan.val) == 0:
        logger.warning("the val split has no %s with embeddings: there will be no validation figures", plan.items)
