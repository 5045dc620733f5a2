"""`efficientsam3 download`: fetch SA-1B's tars by the links that Meta issues."""

import argparse
from pathlib import Path

from efficientsam3.data.sa1b.download import download
from efficientsam3.data.sa1b.links import SOURCE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument(
        "--links",
        type=Path,
        required=True,
        metavar="FILE",
        help=f"the tab-separated file that {SOURCE} issues once you accept the licence; its links expire after weeks",
    )
    parser.add_argument(
        "--subset",
        choices=["all", "10p", "1p"],
        default="all",
        help="all tars with links, or the 100 or 10 of the published subsets (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the tars, ~11 GB each")
    parser.add_argument(
        "--workers", type=int, default=4, metavar="N", help="downloads at a time (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    """Download what is missing."""
    count = download(args.links, args.output, args.subset, args.workers)
    print(f"{args.output}: {count} tars downloaded, none is missing")
    print(f"next: python data/reorg_sa1b.py --source {args.output}")
