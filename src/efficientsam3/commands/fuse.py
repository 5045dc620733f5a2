"""`efficientsam3 fuse`: the same model, faster, for inference alone."""

import argparse
from pathlib import Path

from efficientsam3.commands.merge import print_report
from efficientsam3.merge.fuse import fuse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="an EfficientSAM3, .pt or Hugging Face directory")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="PATH",
        help="what to write, of the same kind. Its student's convolutions take in the BatchNorms that follow them, and "
        "RepViT's parallel branches become one convolution each: the same answers but for rounding (checked to 1e-4), "
        "no longer trainable, and not for the published loader",
    )


def run(args: argparse.Namespace) -> None:
    """Fuse, and print the account."""
    print_report(fuse(args.model, args.output))
