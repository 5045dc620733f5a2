"""`efficientsam3 data check`: what a dataset holds, and what is wrong with it."""

import argparse
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from efficientsam3.data.check.run import PROBLEMS_FILE, QUARANTINE, CheckReport, check_dataset
from efficientsam3.runtime.cores import usable_cores

_BAR_WIDTH = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="read every file and report; exit code 1 if anything is wrong")
    check.add_argument("data_path", type=Path, metavar="DIR", help="the dataset's folder")
    check.add_argument(
        "--dataset",
        choices=["sa1b", "images", "coco"],
        default="sa1b",
        help="layout: images/{train,val}, any folder tree, or COCO's (default: %(default)s)",
    )
    check.add_argument(
        "--workers",
        type=int,
        default=min(usable_cores(), 8),
        metavar="N",
        help="processes (default: one per core up to 8, here %(default)s)",
    )
    check.add_argument(
        "--report", type=Path, metavar="FILE", help=f"where to list all problems (default: DIR/{PROBLEMS_FILE})"
    )
    check.add_argument(
        "--fix",
        action="store_true",
        help=f"move broken images, broken annotations, annotations without image to DIR/{QUARANTINE}; delete nothing",
    )


def run(args: argparse.Namespace) -> None:
    """Check, print the report, and exit with 1 if there are problems left."""
    report = check_dataset(args.data_path, args.dataset, args.workers, args.fix, args.report)
    console = Console()
    console.print(_contents(report))
    console.print(_histogram(report))
    if not report.problems:
        print("No problems found.")
        return
    problems = Table("problem", "files or masks", title="Problems")
    for kind, count in report.counts().items():
        problems.add_row(kind.value, str(count))
    console.print(problems)
    print(f"Each of them: {args.report or args.data_path / PROBLEMS_FILE}")
    if args.fix:
        print(f"{len(report.quarantined)} files moved to {args.data_path / QUARANTINE}")
    sys.exit(1)


def _contents(report: CheckReport) -> Table:
    table = Table("what", "count", title="Contents")
    for split, count in report.images.items():
        table.add_row(f"images, {split}", str(count))
    table.add_row("readable images", f"{len(report.sizes)}, {report.bytes / 1e6:.1f} MB")
    table.add_row("of them with annotations", str(report.annotated))
    table.add_row("masks", f"{report.masks}, {report.masks / max(report.annotated, 1):.1f} an image")
    return table


def _histogram(report: CheckReport) -> Table:
    """Images by their longer side, in steps of a factor of 2 ** 0.5."""
    table = Table("longer side, pixels", "images", "", title="Sizes")
    sides = report.sizes.max(axis=1)
    steps = np.floor(2 * np.log2(sides)).astype(int)
    values, counts = np.unique(steps, return_counts=True)
    for value, count in zip(values, counts, strict=True):
        low, high = np.ceil(2 ** (value / 2)), np.ceil(2 ** ((value + 1) / 2)) - 1
        bar = "█" * max(1, round(_BAR_WIDTH * count / counts.max()))
        table.add_row(f"{low:.0f} to {high:.0f}", str(count), bar)
    return table
