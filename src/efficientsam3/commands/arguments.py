"""Arguments that commands share, and how they become a configuration."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from efficientsam3.config.load import load_config

if TYPE_CHECKING:
    from efficientsam3.config.schema import TrainConfig

Config = TypeVar("Config", bound=BaseModel)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that override configuration keys. A flag that is not given changes nothing."""
    flag = parser.add_argument
    flag("--cfg", type=Path, required=True, metavar="FILE", help="YAML configuration, see stage1/configs/")
    flag("--data-path", type=Path, metavar="DIR", help="DATA.DATA_PATH: folder with images/{train,val}")
    flag("--output", type=Path, metavar="DIR", help="OUTPUT: where everything is written")
    flag("--tag", metavar="NAME", help="TAG: a subfolder of OUTPUT, for several runs of one configuration")
    flag("--batch-size", type=int, metavar="N", help="DATA.BATCH_SIZE: images per process and step")
    flag("--disable-amp", action="store_true", help="AMP_ENABLE false: float32 throughout")
    flag("--only-cpu", action="store_true", help="DEVICE cpu: leave GPUs alone")
    flag(
        "--opts",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY VALUE",
        help="set any configuration key, e.g. --opts DATA.NUM_SAMPLES 100 SEED 1",
    )
    flag(
        "--dry-run",
        nargs="?",
        type=int,
        const=1,
        metavar="PROCESSES",
        help="check the configuration and everything it names, for that many processes on this machine, then stop",
    )


def add_step_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that override how a training begins and takes its steps."""
    flag = parser.add_argument
    flag(
        "--pretrained", metavar="WHAT", help="MODEL.PRETRAINED: true (timm's ImageNet weights), false, or a local file"
    )
    flag("--accumulation-steps", type=int, metavar="N", help="TRAIN.ACCUMULATION_STEPS: batches per optimiser step")
    flag("--use-checkpoint", action="store_true", help="TRAIN.USE_CHECKPOINT: recompute activations to save memory")
    flag("--use-sync-bn", action="store_true", help="TRAIN.USE_SYNC_BN: BatchNorm statistics over all GPUs")
    flag("--compile", action="store_true", help="TRAIN.COMPILE: compile the student with torch.compile")


def read_train_config(args: argparse.Namespace, **flags: Any) -> "TrainConfig":
    """Load the training configuration of `args`, which has the flags of `add_step_arguments` too; see `read_config`."""
    from efficientsam3.config.schema import TrainConfig

    return read_config(
        TrainConfig,
        args,
        MODEL__PRETRAINED=args.pretrained,
        TRAIN__ACCUMULATION_STEPS=args.accumulation_steps,
        TRAIN__USE_CHECKPOINT=args.use_checkpoint or None,
        TRAIN__USE_SYNC_BN=args.use_sync_bn or None,
        TRAIN__COMPILE=args.compile or None,
        **flags,
    )


def read_config(schema: type[Config], args: argparse.Namespace, **flags: Any) -> Config:
    """Load the configuration of `args`; `flags` maps dotted keys, dots written as `__`, to values of further flags."""
    given = {
        "DATA.DATA_PATH": args.data_path,
        "DATA.BATCH_SIZE": args.batch_size,
        "OUTPUT": args.output,
        "TAG": args.tag,
        "AMP_ENABLE": False if args.disable_amp else None,
        "DEVICE": "cpu" if args.only_cpu else None,
        **{key.replace("__", "."): value for key, value in flags.items()},
    }
    return load_config(schema, args.cfg, args.opts, given)
