"""Resuming: which checkpoint, whether it fits, and what it restores."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from efficientsam3.checkpoints.fitting import differences, layouts
from efficientsam3.checkpoints.training import latest_checkpoint, load_training_checkpoint
from efficientsam3.models.students import STUDENTS
from efficientsam3.runtime.distributed import Process
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.runtime.random_state import restore_random_state, seed_everything
from efficientsam3.train.loop import Trainer
from efficientsam3.train.necks import load_necks, necks_of
from efficientsam3.train.plan import TrainPlan
from efficientsam3.train.sums import LossSums

logger = logging.getLogger(LOGGER_NAME)
# Keys that leave the result as it is, but for rounding where the device computes differently. Batch size and
# accumulation are compared as images a step.
_WITHOUT_EFFECT = frozenset(
    {"TAG", "OUTPUT", "DEVICE", "PRINT_FREQ", "SAVE_FREQ", "MODEL.NAME", "MODEL.RESUME"}
    | {"DATA.NUM_WORKERS", "DATA.BATCH_SIZE", "DISTILL.ONLINE_CACHE", "DISTILL.MASKS.AT_ONCE", "TEACHER.COMPILE"}
    | {"DISTILL.DETECTOR.AT_ONCE"}
    | {f"TRAIN.{key}" for key in ("SAVE_STEPS", "KEEP_STEPS", "KEEP_EPOCHS", "AUTO_RESUME", "COMPILE")}
    | {f"TRAIN.{key}" for key in ("ACCUMULATION_STEPS", "USE_CHECKPOINT")}
)
# What shipped configurations had before; stage1/configs/published/ still has it.
_FORMER_DEFAULTS = {"DISTILL.NORMALIZE": "none", "TRAIN.LR_SCALING": "sqrt"}
# By whether the teacher is in the loop, what keys without an effect begin with.
_INERT = {
    True: ("DISTILL.TEACHER_EMBED_PATH", "DISTILL.READ_WINDOW"),
    False: ("TEACHER.", "DISTILL.ONLINE_CACHE", "DISTILL.AUGMENT."),
}


def find_checkpoint(plan: TrainPlan, world_size: int, allow_config_change: bool) -> dict[str, Any] | None:
    """The content of the checkpoint to continue from, or None to start at the beginning.

    Raises:
        UserError: the checkpoint is damaged, or was made with another model, other targets, or another configuration
            and that is not allowed.
    """
    path = plan.resume
    if path is None and plan.optimisation.auto_resume:
        path = latest_checkpoint(plan.output_dir)
    if path is None:
        return None
    content = load_training_checkpoint(path)
    # Checkpoints from before there was a choice of heads do not name theirs.
    unnamed = {"head": "published"} if "head" in asdict(plan.architecture) else {}
    if unnamed | content["architecture"] != asdict(plan.architecture):
        raise UserError(
            f"Checkpoint {path} is of {content['architecture']}, not of {asdict(plan.architecture)}: give another "
            "OUTPUT or --resume, or set TRAIN.AUTO_RESUME false."
        )
    _check_necks(content, plan, path)
    changes = list(_changes(content, plan, world_size))
    other_targets = _normalised(content) != plan.recorded["DISTILL"].get("NORMALIZE", "none")
    if other_targets or (changes and not allow_config_change):
        goes_on = "give the checkpoint as MODEL.PRETRAINED in another OUTPUT"
        if not other_targets:
            goes_on = "give another OUTPUT, or continue anyway with --allow-config-change"
        raise UserError(
            f"Checkpoint {path} was made with another configuration ({'; '.join(changes)}): "
            f"{_way_back(content['config'], plan)}, or {goes_on}."
        )
    for change in changes:
        logger.warning("changed since the checkpoint: %s", change)
    logger.info("continuing from %s", path)
    return content


def _check_necks(content: Mapping[str, Any], plan: TrainPlan, path: Path) -> None:
    found = (content.get("necks") or {"origins": {}})["origins"]
    wanted = {name: neck.origin for name, neck in plan.necks.items()}
    if found.keys() != wanted.keys():
        trained, now = (" and ".join(sorted(names)) or "none" for names in (found, wanted))
        raise UserError(
            f"Checkpoint {path} was made while training other necks (of {trained}) than DISTILL.MASKS.NECK and "
            f"DISTILL.DETECTOR.NECK ask for (of {now}): set those back, or give the checkpoint as MODEL.PRETRAINED in "
            "another OUTPUT."
        )
    if found != wanted:
        raise UserError(
            f"Checkpoint {path} was made with the necks of another SAM3 than DISTILL.MASKS.DECODER and "
            "DISTILL.DETECTOR.CHECKPOINT name: give the SAM3 that it was made with, or another OUTPUT."
        )


def restore(content: Mapping[str, Any], trainer: Trainer, process: Process, seed: int) -> None:
    """Bring a trainer, and this process's random numbers, to where `content` was saved.

    With as many processes as before, training continues as if it had not stopped. With another number, the sums of the
    epoch so far go to the first process, and random numbers are seeded by the step.

    Raises:
        UserError: a part of the checkpoint does not fit.
    """
    try:
        _restore(content, trainer, process, seed)
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:  # PyTorch's and ours of a state
        raise UserError(
            f"The checkpoint of step {content['step']} cannot be continued from ({error}): use another checkpoint, "
            "or set TRAIN.AUTO_RESUME false with another OUTPUT."
        ) from error


def _restore(content: Mapping[str, Any], trainer: Trainer, process: Process, seed: int) -> None:
    averages = content.get("ema") or content["model"]
    expected = layouts(trainer.student.state_dict())
    for state in (content["model"], averages):
        if wrong := differences(layouts(state), expected):
            raise ValueError(wrong)
    trainer.student.load_state_dict(content["model"])
    necks = content.get("necks") or {"model": {}}
    load_necks(necks_of(trainer.trained), necks["model"])
    if trainer.ema is not None:  # switched on since: it starts here
        trainer.evaluated.load_state_dict(averages)
        load_necks(trainer.evaluated_necks, necks.get("ema") or necks["model"])
    trainer.load_state_dict(dict(content))
    shares = content["processes"]
    if len(shares) == process.world_size:
        own = [shares[process.rank]["sums"]]
        restore_random_state(shares[process.rank]["random"], process.device)
    else:
        own = [share["sums"] for share in shares] if process.is_main else []
        seed_process(seed, trainer.step, process)
    trainer.sums = LossSums.from_states(own, process.device)
    if content["finished"]:
        trainer.begin_epoch(trainer.epoch + 1)


def seed_process(seed: int, step: int, process: Process) -> None:
    """Seed this process's random numbers; each process has its own, so that their dropout differs."""
    seed_everything(int(np.random.SeedSequence([seed, step, process.rank]).generate_state(1)[0]))


def _normalised(content: Mapping[str, Any]) -> str:
    """What the targets of a checkpoint are, as DISTILL.NORMALIZE says it."""
    recorded = dict(_flat(content["config"])).get("DISTILL.NORMALIZE")
    return "none" if "normalisation" not in content else str(recorded or "channel")


def _way_back(recorded: Mapping[str, Any], plan: TrainPlan) -> str:
    """How to have the configuration again that a checkpoint recorded."""
    old, new = dict(_flat(recorded)), dict(_flat(plan.recorded))
    former = [f"{key} {value}" for key, value in _FORMER_DEFAULTS.items() if old.get(key) == value != new[key]]
    if not former:
        return "set that back"
    names = [name for name, student in STUDENTS.items() if student.backbone == plan.architecture.backbone]
    ways = [*(f"--cfg stage1/configs/published/{name}.yaml" for name in names), f"--opts {' '.join(former)}"]
    return f"set that back with {' or '.join(ways)}"


def _changes(content: Mapping[str, Any], plan: TrainPlan, world_size: int) -> Iterator[str]:
    old, new = dict(_flat(content["config"])), dict(_flat(plan.recorded))
    # Older versions accepted, and recorded, settings that have no effect.
    online = {recorded.get("DISTILL.ONLINE") is True for recorded in (old, new)}
    inert = () if len(online) == 2 else _INERT[online.pop()]
    for key in sorted(old.keys() | new.keys()):
        # A resumed run loads no initial weights, so they may be switched off, e.g. on a machine without the file.
        switched_off = key == "MODEL.PRETRAINED" and new.get(key) is False
        if key in _WITHOUT_EFFECT or switched_off or key.startswith(("PROBE.", *inert)):
            continue
        if old.get(key) != new.get(key):
            yield f"{key}: {old.get(key)} -> {new.get(key)}"
    measured = content.get("statistics_images")
    for what, was, now in (
        ("images a step", content["images_per_step"], plan.images_per_step(world_size)),
        ("training images", content["images"], len(plan.train)),
        ("images that the statistics are of", measured, plan.targets.measured_images() if measured else None),
    ):
        if was != now:
            yield f"{what}: {was} -> {now}"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
