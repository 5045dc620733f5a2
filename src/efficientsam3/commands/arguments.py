"""Arguments that export and training share, and how they become a configuration."""

import argparse
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from efficientsam3.config.load import load_config

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
