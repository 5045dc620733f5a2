"""`efficientsam3 export-coreml`: a model's image encoder as a CoreML package."""

import argparse
from pathlib import Path

from rich.console import Console

from efficientsam3.export.coreml.run import export_coreml


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    flag = parser.add_argument
    flag(
        "model",
        type=Path,
        metavar="MODEL",
        help="a merged .pt file, a Hugging Face directory, plain SAM3, or a training's ckpt_epoch_N.pth",
    )
    flag(
        "--out",
        type=Path,
        required=True,
        metavar="ENCODER.mlpackage",
        help="the package to write; what an earlier export wrote there is replaced",
    )
    flag(
        "--precision",
        choices=("fp16", "fp32"),
        default="fp16",
        help="fp16 for the Neural Engine and half the size, but for the operations whose values would overflow; fp32 "
        "for equality with PyTorch (default: %(default)s)",
    )
    flag(
        "--pictures",
        type=Path,
        metavar="DIR",
        help="pictures on which fp16's limit is watched and, on macOS, the package is compared with PyTorch, the first "
        "ten by name (default: two made-up ones)",
    )


def run(args: argparse.Namespace) -> None:
    """Export, and print what was written and measured."""
    report = export_coreml(args.model, args.out, precision=args.precision, images=args.pictures)
    kept = f", {len(report.float32_operations)} of them in float32" if report.float32_operations else ""
    Console(soft_wrap=True, highlight=False, markup=False).print(
        f"{report.bytes / 1e6:9.1f} MB  {args.out}: {args.precision}, {report.operations} operations{kept}; "
        f"{report.compared}"
    )
