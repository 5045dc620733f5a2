"""`efficientsam3 train`: train a student on stored embeddings."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from efficientsam3.commands.arguments import add_config_arguments, add_step_arguments, read_train_config

if TYPE_CHECKING:
    from efficientsam3.runtime.signals import StopRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_config_arguments(parser)
    flag = parser.add_argument
    flag(
        "--resume", type=Path, metavar="CKPT", help="MODEL.RESUME: ckpt_epoch_N.pth or ckpt_step_N.pth to continue from"
    )
    add_step_arguments(parser)
    flag(
        "--allow-config-change",
        action="store_true",
        help="continue from a checkpoint of another configuration; without it, the changes are named and refused",
    )


def run(args: argparse.Namespace) -> None:
    """Train."""
    from efficientsam3.runtime.signals import stop_on_signals

    # From the start: a signal that comes while PyTorch is imported is not lost.
    with stop_on_signals() as stop:
        _train(args, stop)


def _train(args: argparse.Namespace, stop: "StopRequest") -> None:
    # Before PyTorch is imported, which takes seconds: a mistyped key is named at once.
    config = read_train_config(args, MODEL__RESUME=args.resume)

    from efficientsam3.evaluate.observers import training_observers
    from efficientsam3.runtime.device import select_device
    from efficientsam3.runtime.run import run_step
    from efficientsam3.train.plan import plan_training
    from efficientsam3.train.run import check_training, run_training

    if args.dry_run is not None:
        # The launcher says how many processes there will be on all machines together.
        world_size = int(os.environ.get("WORLD_SIZE", args.dry_run))
        plan = plan_training(config)
        check_training(plan, world_size, args.allow_config_change)
        training_observers(plan, select_device(config.DEVICE, args.dry_run - 1))
        return
    with run_step(config, config.output_dir) as process:
        plan = plan_training(config)
        observers = training_observers(plan, process.device) if process.is_main else None
        run_training(plan, process, stop, observers, args.allow_config_change)
