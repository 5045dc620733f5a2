"""`efficientsam3 train`: train a student on stored embeddings."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from efficientsam3.commands.arguments import add_config_arguments, read_config

if TYPE_CHECKING:
    from efficientsam3.runtime.signals import StopRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_config_arguments(parser)
    flag = parser.add_argument
    flag(
        "--resume", type=Path, metavar="CKPT", help="MODEL.RESUME: ckpt_epoch_N.pth or ckpt_step_N.pth to continue from"
    )
    flag(
        "--pretrained", metavar="WHAT", help="MODEL.PRETRAINED: true (timm's ImageNet weights), false, or a local file"
    )
    flag("--accumulation-steps", type=int, metavar="N", help="TRAIN.ACCUMULATION_STEPS: batches per optimiser step")
    flag("--use-checkpoint", action="store_true", help="TRAIN.USE_CHECKPOINT: recompute activations to save memory")
    flag("--use-sync-bn", action="store_true", help="TRAIN.USE_SYNC_BN: BatchNorm statistics over all GPUs")
    flag("--compile", action="store_true", help="TRAIN.COMPILE: compile the student with torch.compile")
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
    from efficientsam3.config.schema import TrainConfig

    # Before PyTorch is imported, which takes seconds: a mistyped key is named at once.
    config = read_config(
        TrainConfig,
        args,
        MODEL__RESUME=args.resume,
        MODEL__PRETRAINED=args.pretrained,
        TRAIN__ACCUMULATION_STEPS=args.accumulation_steps,
        TRAIN__USE_CHECKPOINT=args.use_checkpoint or None,
        TRAIN__USE_SYNC_BN=args.use_sync_bn or None,
        TRAIN__COMPILE=args.compile or None,
    )

    from efficientsam3.distill.train import check_training, train
    from efficientsam3.evaluate.observers import training_observers
    from efficientsam3.runtime.device import select_device
    from efficientsam3.runtime.run import run_step

    if args.dry_run is not None:
        # The launcher says how many processes there will be on all machines together.
        world_size = int(os.environ.get("WORLD_SIZE", args.dry_run))
        check_training(config, world_size, args.allow_config_change)
        training_observers(config, select_device(config.DEVICE, args.dry_run - 1))
        return
    with run_step(config, config.output_dir) as process:
        observers = training_observers(config, process.device) if process.is_main else None
        train(config, process, stop, observers, allow_config_change=args.allow_config_change)
