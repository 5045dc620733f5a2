"""`efficientsam3 reorg`: make a dataset out of Meta's tars or extracted folders."""

import argparse
import sys
from pathlib import Path

from efficientsam3.data.sa1b.placing import Mode
from efficientsam3.data.sa1b.reorganise import SKIPPED_FILE, reorganise
from efficientsam3.data.split import DEFAULT_VAL_RATIO
from efficientsam3.runtime.cores import usable_cores

_DEFAULT_OUTPUT = Path("data/sa-1b")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--source",
        type=Path,
        help="folder of .tar files, or of extracted ID.jpg + ID.json pairs, at any depth (default: --output, in place)",
    )
    parser.add_argument("--output", type=Path, default=_DEFAULT_OUTPUT, help="the dataset (default: %(default)s)")
    parser.add_argument(
        "--val-ratio",
        type=float,
        default=DEFAULT_VAL_RATIO,
        metavar="R",
        help="share of images for val; a hash of its id decides, so later tars move none (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=min(usable_cores(), 8),
        metavar="N",
        help="processes, each with a tar at a time (default: one per core up to 8, here %(default)s)",
    )
    parser.add_argument(
        "--delete-tars",
        action="store_true",
        help="remove each tar once all of it is in place and on disk; one with anything skipped stays",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--link", dest="mode", action="store_const", const="link", help="hard-link the files of folders")
    mode.add_argument("--move", dest="mode", action="store_const", const="move", help="move them (default in place)")
    mode.add_argument("--copy", dest="mode", action="store_const", const="copy", help="copy them (default elsewhere)")


def run(args: argparse.Namespace) -> None:
    """Reorganise and print the counts; exit code 1 if anything was skipped."""
    source = args.source or args.output
    in_place = source.resolve() == args.output.resolve()
    mode: Mode = args.mode or ("move" if in_place else "copy")
    report = reorganise(source, args.output, args.val_ratio, args.workers, mode, args.delete_tars)
    print(f"{args.output}: {report.placed} pairs put in place, {report.kept} there already")
    if report.skipped:
        print(f"{len(report.skipped)} files skipped, with reasons in {args.output / SKIPPED_FILE}")
        sys.exit(1)
