"""`efficientsam3 merge`: SAM3 in, EfficientSAM3 out."""

import argparse
from pathlib import Path

from rich.console import Console

from efficientsam3.checkpoints.sam3_keys import STUDENT_PREFIX
from efficientsam3.checkpoints.sam3_tensors import TRUNK_PREFIX
from efficientsam3.merge.account import MergeReport
from efficientsam3.merge.run import DTYPES, merge
from efficientsam3.sam3.parts import PARTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    flag = parser.add_argument
    flag(
        "--student-ckpt",
        type=Path,
        required=True,
        metavar="FILE",
        help="the student: ckpt_epoch_N.pth of training, a published student, or a merged model to take it from",
    )
    flag(
        "--sam3-ckpt",
        type=Path,
        required=True,
        metavar="PATH",
        help="SAM3 itself: Meta's sam3.pt, or with --format hf also a Hugging Face directory such as facebook/sam3",
    )
    flag(
        "--output",
        type=Path,
        required=True,
        metavar="PATH",
        help="the file to write (native; metadata and model card come beside it as .json and .md), or directory (hf)",
    )
    flag(
        "--target-prefix",
        default=STUDENT_PREFIX,
        metavar="PREFIX",
        help="what stands before the student's keys in a native file (default: %(default)s, where the published "
        "loader looks)",
    )
    flag(
        "--replace-prefix",
        default=TRUNK_PREFIX,
        metavar="PREFIX",
        help="SAM3's tensors under this prefix are left out (default: %(default)s, the whole image trunk)",
    )
    flag(
        "--format",
        choices=("native", "hf"),
        default="native",
        help="native: one .pt file for Meta's and the published EfficientSAM3 code; hf: a directory for transformers' "
        "Sam3Model and Sam3TrackerModel (default: %(default)s)",
    )
    flag(
        "--dtype",
        choices=tuple(DTYPES),
        help="store all weights in this precision; default: as they are, bit by bit",
    )
    flag(
        "--keep",
        default=",".join(PARTS),
        metavar="PARTS",
        help="comma-separated parts of SAM3 to keep (default: %(default)s). "
        + "; ".join(f"{part}: {meaning}" for part, meaning in PARTS.items()),
    )
    flag("--fuse", action="store_true", help="fuse the student for inference, as `efficientsam3 fuse` does; see there")
    flag("--dry-run", action="store_true", help="check everything and print where each tensor goes; write nothing")


def run(args: argparse.Namespace) -> None:
    """Merge, and print the account."""
    report = merge(
        args.student_ckpt,
        args.sam3_ckpt,
        args.output,
        target_prefix=args.target_prefix,
        replace_prefix=args.replace_prefix,
        format=args.format,
        dtype=DTYPES[args.dtype] if args.dtype else None,
        keep=[part.strip() for part in args.keep.split(",")],
        fuse=args.fuse,
        dry_run=args.dry_run,
    )
    print_report(report)


def print_report(report: MergeReport) -> None:
    """Print the account of what was written."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for line in report.lines():
        console.print(line)
