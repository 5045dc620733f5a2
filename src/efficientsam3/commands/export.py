"""`efficientsam3 export`: run the teacher over the dataset and store its embeddings."""

import argparse
from pathlib import Path

from efficientsam3.commands.arguments import add_config_arguments, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_config_arguments(parser)
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="TEACHER",
        help="MODEL.RESUME: native sam3.pt, Hugging Face SAM3 directory, or ONNX image encoder",
    )
    parser.add_argument(
        "--check-saved-embed",
        action="store_true",
        help="write nothing: recompute stored embeddings with the teacher and compare",
    )
    parser.add_argument(
        "--check-samples", type=int, default=0, metavar="N", help="with --check-saved-embed: compare N images (0: all)"
    )


def run(args: argparse.Namespace) -> None:
    """Export, or check an export."""
    from efficientsam3.config.schema import ExportConfig

    # Before PyTorch is imported, which takes seconds: a mistyped key is named at once.
    config = read_config(ExportConfig, args, MODEL__RESUME=args.resume)

    from efficientsam3.embed.plan import check_space, missing_images, plan_export
    from efficientsam3.embed.run import export_embeddings
    from efficientsam3.embed.verify import check_saved_embeddings
    from efficientsam3.runtime.device import select_device
    from efficientsam3.runtime.run import run_step

    if args.dry_run is not None:
        plan = plan_export(config)
        if not args.check_saved_embed:
            check_space(plan, missing_images(plan))
        select_device(config.DEVICE, args.dry_run - 1)
        return
    with run_step(config, config.output_dir, write=not args.check_saved_embed) as process:
        if args.check_saved_embed:
            check_saved_embeddings(config, process, args.check_samples)
        else:
            export_embeddings(config, process)
