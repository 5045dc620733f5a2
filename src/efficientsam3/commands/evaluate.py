"""`efficientsam3 evaluate`: how good the masks are, of several models in one table."""

import argparse
from pathlib import Path

from rich.console import Console

from efficientsam3.data.split import SPLITS
from efficientsam3.evaluate.masks.ground_truth import Selection
from efficientsam3.evaluate.masks.objects import PROMPT_KINDS
from efficientsam3.evaluate.masks.open_models import FedPixels
from efficientsam3.evaluate.report.score_tables import score_table
from efficientsam3.evaluate.run import EvaluationRequest, evaluate_masks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    flag = parser.add_argument
    flag(
        "models",
        nargs="+",
        metavar="[NAME=]MODEL",
        help="a merged EfficientSAM3 or SAM3 (.pt, Hugging Face directory, or what export-onnx wrote, as DIR:int8 with "
        "that image encoder); with --decoder also ckpt_epoch_N.pth, an "
        "embedding store, an .onnx image encoder, or `random` (noise); the others' agreement is with the first",
    )
    flag(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="annotated pictures: an SA-1B folder, a COCO folder, or a COCO instances .json",
    )
    flag("--split", choices=SPLITS, default="val", help="which part of a folder (default: %(default)s)")
    flag("--images", type=Path, metavar="DIR", help="where an instances .json has its pictures, if not beside it")
    flag(
        "--prompt",
        nargs="+",
        choices=PROMPT_KINDS,
        default=["box", "point"],
        help="what is asked for each object: its true box, a point inside it, its box's centre, its COCO category's "
        "name (default: box point)",
    )
    flag(
        "--decoder",
        type=Path,
        metavar="FILE",
        help="decodes the embeddings of models without a decoder: SAM's decoder as .onnx, or a SAM3",
    )
    flag(
        "--out",
        type=Path,
        default=Path("output/evaluate"),
        metavar="DIR",
        help="where results.json and report.html go (default: %(default)s)",
    )
    flag(
        "--run",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a training's folder, whose curves the report shows; those beside a ckpt_epoch_N.pth are shown anyway",
    )
    _add_selection(parser)
    flag(
        "--resize",
        choices=("teacher", "square", "pad"),
        default="teacher",
        help="how pictures become the encoders' input: as each was trained (the default), or something else on purpose",
    )
    flag(
        "--mean",
        choices=("teacher", "half", "imagenet"),
        default="teacher",
        help="mean and standard deviation of the input's pixels, likewise",
    )
    flag("--device", choices=("auto", "cpu", "mps", "cuda"), default="auto", help="where to compute (default: auto)")


def _add_selection(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument
    flag("--min-area", type=_count, default=0, metavar="PIXELS", help="leave out objects smaller than this")
    flag("--max-images", type=_count, default=0, metavar="N", help="measure N images, chosen by --seed (default: all)")
    flag("--max-objects", type=_count, default=0, metavar="N", help="measure N objects an image, chosen by --seed")
    flag("--seed", type=_count, default=0, metavar="N", help="chooses images, objects and noise (default: %(default)s)")


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return number


def run(args: argparse.Namespace) -> None:
    """Measure, and print the table."""
    request = EvaluationRequest(
        models=args.models,
        data=args.data,
        prompts=list(dict.fromkeys(args.prompt)),
        split=args.split,
        images=args.images,
        decoder=args.decoder,
        fed=FedPixels(args.resize, args.mean),
        selection=Selection(args.min_area, args.max_images, args.max_objects, args.seed),
        device=args.device,
        runs=args.run,
    )
    evaluation = evaluate_masks(request, args.out)
    console = Console(highlight=False)
    console.print(score_table(evaluation.summaries, evaluation.measurement.images))
    if evaluation.measurement.broken:
        console.print(f"{len(evaluation.measurement.broken)} images were skipped as broken.", markup=False)
    if evaluation.measurement.lacking:
        console.print(f"{evaluation.measurement.lacking} images have no embedding and were left out.", markup=False)
    console.print(
        f"{evaluation.report} and {evaluation.results.name}, in {evaluation.seconds:.0f} s",
        markup=False,
        soft_wrap=True,
    )
