"""What a training works with, built from its plan; nothing is written."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import nn
from torch.profiler import record_function
from torch.utils.data import Subset

from efficientsam3.checkpoints.necks import NeckName, neck_names, read_trained_necks
from efficientsam3.checkpoints.standardisation import Standardisation
from efficientsam3.data.loader import ImageLoader, build_loader
from efficientsam3.models.build import build_student
from efficientsam3.models.gradient_checkpointing import enable_gradient_checkpointing
from efficientsam3.models.student import Student
from efficientsam3.runtime.device import autocast_dtype
from efficientsam3.runtime.distributed import Process, on_main
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.sam3.necks import load_neck, trainable_copy
from efficientsam3.train.covariance import measure_covariance
from efficientsam3.train.loop import StepSettings, Trainer
from efficientsam3.train.necks import StudentWithNecks
from efficientsam3.train.objective import Averages, FeatureObjective, Objective
from efficientsam3.train.optimizer import build_optimizer, learning_rate_factor, scale_learning_rate
from efficientsam3.train.phrases import PhraseObjective, PhrasePlan, PhraseTrainer
from efficientsam3.train.plan import TrainPlan
from efficientsam3.train.resume import restore, seed_process
from efficientsam3.train.sampler import EpochSampler
from efficientsam3.train.stages import Label

logger = logging.getLogger(LOGGER_NAME)


@dataclass(frozen=True)
class TargetMoments:
    """What is known of the teacher's embeddings; a training keeps what it began with."""

    standardisation: Standardisation | None  # what the targets are standardised by
    variance: float | None  # mean over channels
    images: str | None = None  # SHA-256 of the names of the images that computed targets were measured on

    @classmethod
    def find(cls, plan: TrainPlan, process: Process, resumed: Mapping[str, Any] | None) -> Self:
        """Take them from a checkpoint, from the store or, with the teacher in the loop, from the first images.

        All processes must call this, with the targets open.

        Raises:
            UserError: none of the first images can be read.
        """
        statistics, images = plan.statistics, None
        if resumed is not None and plan.standardise:
            # The store's statistics may have grown since, but what the student gives is standardised by these.
            variance = resumed.get("variance") if statistics is None else float(statistics.variance.mean())
            return cls(Standardisation.from_state(resumed["normalisation"]), variance, resumed.get("statistics_images"))
        if plan.standardise and statistics is None:
            statistics, images = plan.targets.measure_moments(process), plan.targets.measured_images()
        if statistics is None:
            return cls(None, None)
        variance = float(statistics.variance.mean())
        if not plan.standardise:
            return cls(None, variance)
        if plan.rotate is None:
            return cls(Standardisation.of(statistics.mean, statistics.variance), variance, images)
        return cls(plan.rotate(*on_main(process, lambda: measure_covariance(plan))), variance)

    def state_dict(self) -> dict[str, Any]:
        """What checkpoints hold of it."""
        state: dict[str, Any] = {}
        if self.standardisation is not None:
            state["normalisation"] = self.standardisation.state_dict()
        if self.images is not None:
            state |= {"variance": self.variance, "statistics_images": self.images}
        return state


@dataclass(frozen=True)
class Training:
    """A trainer and what feeds it."""

    trainer: Trainer
    moments: TargetMoments
    sampler: EpochSampler  # orders the training images
    train_loader: ImageLoader
    val_loader: ImageLoader


def build_training(
    plan: TrainPlan,
    process: Process,
    resumed: Mapping[str, Any] | None = None,
    report: Callable[[int, Averages], None] = lambda step, figures: None,
    stage: Label = record_function,
) -> Training:
    """Build what `plan` describes, at the beginning or where the checkpoint content `resumed` was saved.

    Args:
        plan: what to train; its targets are open.
        process: this process among its peers.
        resumed: content of the checkpoint to continue from; None for a new training.
        report: see `Trainer`.
        stage: see `Trainer`.

    Raises:
        UserError: the weights to start from do not fit, see `build_student`.
    """
    moments = TargetMoments.find(plan, process, resumed)
    torch.manual_seed(plan.seed)
    # Under DDP every process starts from rank 0's weights, so the others need none of their own.
    needs_weights = resumed is None and process.is_main
    student = _new_student(plan, needs_weights, moments.standardisation)
    necks = _build_necks(plan, process, needs_weights)
    trainer = _build_trainer(plan, process, student, necks, moments, report, stage)
    if resumed is None:
        seed_process(plan.seed, 0, process)
    else:
        restore(resumed, trainer, process, plan.seed)
    sampler = _train_sampler(plan, process)
    return Training(trainer, moments, sampler, *_loaders(plan, process, sampler))


def _new_student(plan: TrainPlan, needs_weights: bool, standardisation: Standardisation | None) -> Any:
    if isinstance(plan, PhrasePlan):
        # Imported here, since transformers takes seconds.
        from efficientsam3.models.text_student import TextStudent

        return TextStudent(plan.architecture)
    if needs_weights:
        return build_student(plan.architecture, plan.pretrained, standardisation)
    return Student(plan.architecture)


def _loaders(plan: TrainPlan, process: Process, sampler: EpochSampler) -> tuple[ImageLoader, ImageLoader]:
    """The loaders of the training and of the validation images."""
    loader = partial(
        build_loader,
        batch_size=plan.batch_size,
        num_workers=plan.num_workers,
        collate=plan.collate,
        device=process.device,
    )
    # Validation takes every image exactly once: no padding, and nothing collective within the loop.
    share = Subset(plan.val, range(process.rank, len(plan.val), process.world_size))
    return loader(plan.train, sampler=sampler), loader(share)


def _train_sampler(plan: TrainPlan, process: Process) -> EpochSampler:
    """A new order each epoch, by SEED and epoch."""
    order = plan.targets.file_order(plan.train.rows) if plan.read_window else None
    return EpochSampler(len(plan.train), process.world_size, process.rank, plan.seed, order, plan.read_window)


def _build_necks(plan: TrainPlan, process: Process, needs_weights: bool) -> dict[NeckName, nn.Module]:
    """The necks to train, as SAM3 has them or, where the student to start from has its own, as that does.

    Raises:
        UserError: its necks were trained from another SAM3's.
    """
    found = {name: neck.own for name, neck in plan.necks.items()}
    start = plan.pretrained
    earlier = read_trained_necks(start) if needs_weights and isinstance(start, Path) else None
    for name in [] if earlier is None else neck_names(earlier.origins):
        if name in found:
            assert earlier is not None
            found[name] = load_neck(found[name], earlier, name, str(start), "this training's")
        else:
            logger.warning("%s has a trained neck of SAM3's %s, which this training leaves as SAM3 has it", start, name)
    return {name: trainable_copy(neck).to(process.device) for name, neck in found.items()}


def _build_trainer(
    plan: TrainPlan,
    process: Process,
    student: Student,
    necks: dict[NeckName, nn.Module],
    moments: TargetMoments,
    report: Callable[[int, Averages], None],
    stage: Label,
) -> Trainer:
    optimisation = plan.optimisation
    # cuDNN's convolutions are faster on channels_last; CPUs were measured, see docs/training.md.
    layout = torch.channels_last if process.device.type == "cuda" else torch.preserve_format
    student.to(process.device, memory_format=layout)  # type: ignore[call-overload]
    # Copied before the student's forward is wrapped: the average must keep the unwrapped one.
    trained: nn.Module = StudentWithNecks(student, necks) if necks else student
    ema = ModelEmaV3(trained, optimisation.ema, use_warmup=True) if optimisation.ema else None
    model = _wrap(plan, process, student, trained)
    rate_at = _schedule(plan, process)
    settings = StepSettings(
        images=len(plan.train),
        batch=plan.batch_size * process.world_size,
        accumulation=optimisation.accumulation_steps,
        clip_norm=optimisation.clip_grad,
        small_epochs=optimisation.small_epochs,
        autocast=autocast_dtype(process.device) if plan.amp else None,
        print_freq=plan.print_freq,
    )
    standardisation = None if moments.standardisation is None else moments.standardisation.to(process.device)
    objective = _objective(plan, process, standardisation, moments.variance)
    scaled = [(necks[name], neck.rate) for name, neck in plan.necks.items()]
    decays = optimisation.weight_decay, optimisation.layer_decay
    optimizer = build_optimizer(student, rate_at(0), *decays, scaled)
    if isinstance(plan, PhrasePlan):
        return PhraseTrainer(
            plan, model, optimizer, rate_at, plan.targets, objective, process, settings, ema, report, stage
        )
    return Trainer(model, optimizer, rate_at, plan.targets, objective, process, settings, ema, report, stage)


def _objective(
    plan: TrainPlan, process: Process, standardisation: Standardisation | None, variance: float | None
) -> Objective:
    alone = plan.masks is None and plan.detector is None
    features = FeatureObjective(plan.term_weights, standardisation, variance, alone, plan.learns_padding)
    objective: Objective = features
    if isinstance(plan, PhrasePlan):
        return PhraseObjective(features, plan.shuffle)
    # Imported here, since transformers takes seconds.
    if plan.masks is not None:
        from efficientsam3.train.masks import MaskObjective

        predictor = plan.masks.predictor.to(process.device)
        objective = MaskObjective(features, predictor, plan.masks.settings, plan.seed)
    if plan.detector is not None:
        from efficientsam3.train.detector import DetectorObjective

        detector, phrases = plan.detector.detector.to(process.device), plan.detector.phrases
        objective = DetectorObjective(objective, standardisation, detector, phrases, plan.detector.settings, plan.seed)
    return objective


def _wrap(plan: TrainPlan, process: Process, student: Student, trained: nn.Module) -> nn.Module:
    if plan.optimisation.use_checkpoint:
        enable_gradient_checkpointing(student.backbone)
    if plan.optimisation.use_sync_bn:
        convert_sync_batchnorm(student)
    if plan.optimisation.compile:
        student.compile()  # in place: state-dict keys stay as they are
    if process.world_size == 1:
        return trained
    device_ids = [process.device] if process.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(trained, device_ids=device_ids)


def _schedule(plan: TrainPlan, process: Process) -> Callable[[int], float]:
    settings, total_batch = plan.optimisation, plan.images_per_step(process.world_size)
    an_epoch = math.ceil(len(plan.train) / total_batch)
    steps = an_epoch * settings.epochs
    rate = scale_learning_rate(settings.base_lr, total_batch, steps, settings.lr_scaling)
    logger.info(
        "learning rate %.3g (BASE_LR %g, %s rule, %d steps of %d %s)",
        rate,
        settings.base_lr,
        settings.lr_scaling,
        steps,
        total_batch,
        plan.items,
    )
    factor = partial(
        learning_rate_factor,
        total_steps=steps,
        warmup_steps=round(an_epoch * settings.warmup_epochs),
        floor=settings.min_lr / settings.base_lr,
    )
    return lambda step: rate * factor(step)
