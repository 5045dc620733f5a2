"""`efficientsam3 plan`: what an export will take, before it is begun."""

import argparse
from datetime import timedelta
from pathlib import Path

from efficientsam3.commands.arguments import add_config_arguments, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_config_arguments(parser)
    parser.add_argument("--resume", type=Path, metavar="TEACHER", help="MODEL.RESUME, as for the export")
    parser.add_argument("--batches", type=int, default=3, metavar="N", help="to time (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Measure and print; nothing is written."""
    from efficientsam3.config.schema import ExportConfig

    config = read_config(ExportConfig, args, MODEL__RESUME=args.resume)

    from rich.console import Console
    from rich.table import Table

    from efficientsam3.embed.estimate import estimate_export
    from efficientsam3.embed.plan import plan_export
    from efficientsam3.runtime.distributed import process_group

    if args.dry_run is not None:
        plan_export(config)
        return
    with process_group(config.DEVICE) as process:
        estimate = estimate_export(config, process, args.batches)
    print(f"{estimate.images} images, {estimate.missing} of them to export; {estimate.free / 1e9:.1f} GB free")
    table = Table("DISTILL.CODEC", "GB", "fits", title="On disk")
    for name, size in estimate.codec_sizes.items():
        chosen = " (chosen)" if name == config.DISTILL.CODEC else ""
        table.add_row(f"{name}{chosen}", f"{size / 1e9:.3f}", "yes" if size <= estimate.free else "no")
    Console().print(table)
    print(
        f"One process here: {estimate.rate:.2f} images/s at batch {config.DATA.BATCH_SIZE} on {process.device}, "
        f"{estimate.memory / 1e9:.2f} GB of memory"
    )
    for processes in (1, 8, 64):
        print(f"{processes} such: {timedelta(seconds=round(estimate.seconds(processes)))}")
