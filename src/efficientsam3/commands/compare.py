"""`efficientsam3 compare`: the students' sizes beside SAM3's."""

import argparse
from pathlib import Path

from rich.console import Console

from efficientsam3.benchmark.parameter_tables import comparison_tables
from efficientsam3.benchmark.parameters import ALL, compare_models
from efficientsam3.models.student import STUDENTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument(
        "--student",
        nargs="+",
        default=[ALL],
        metavar="NAME",
        help=f"students to compare: {ALL} (the default), or one or more of {', '.join(STUDENTS)}",
    )
    parser.add_argument(
        "--head",
        choices=("published", "fpn"),
        default="published",
        help="the students' head: published, on the last map; fpn, fusing strides 8, 16 and 32 (default: %(default)s)",
    )
    parser.add_argument(
        "--sam3-ckpt",
        type=Path,
        metavar="FILE",
        help="count this sam3.pt, and size the students for it; default: a shipped table of its shapes",
    )


def run(args: argparse.Namespace) -> None:
    """Print the tables."""
    console = Console()
    for table in comparison_tables(compare_models(args.student, args.sam3_ckpt, args.head)):
        console.print(table)
