"""`efficientsam3 export-onnx`: a model as ONNX graphs."""

import argparse
from pathlib import Path

from rich.console import Console

from efficientsam3.export.onnx.run import export_onnx


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    flag = parser.add_argument
    flag(
        "model",
        type=Path,
        metavar="MODEL",
        help="a merged .pt file, a Hugging Face directory, or plain SAM3; parts left out of it are left out here; of a "
        "training's ckpt_epoch_N.pth the image encoder alone",
    )
    flag(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="where image_encoder.onnx and the other graphs, model.json and tokenizer.json go; an earlier export there "
        "is replaced",
    )
    flag(
        "--variants",
        nargs="+",
        choices=("fp16", "int8"),
        default=[],
        help="the image encoder in these precisions too: fp16 for GPUs and phones, int8 for CPUs; what each costs in "
        "accuracy is measured and printed",
    )
    flag(
        "--calibrate",
        type=Path,
        metavar="DIR",
        help="pictures like those it will see, up to a hundred, for int8's scales and fp16's limits",
    )
    flag(
        "--pictures",
        type=Path,
        metavar="DIR",
        help="pictures on which each graph is compared with PyTorch, the first ten by name (default: two made-up ones)",
    )


def run(args: argparse.Namespace) -> None:
    """Export, and print what was measured."""
    manifest = export_onnx(args.model, args.out, variants=args.variants, calibrate=args.calibrate, images=args.pictures)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for graph in (*manifest.graphs.values(), *manifest.variants.values()):
        figures = ", ".join(f"{name.replace('_', ' ')} {value:.2g}" for name, value in graph.measured.items())
        console.print(f"{graph.bytes / 1e6:9.1f} MB  {args.out / graph.file}: {figures}")
