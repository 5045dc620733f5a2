"""`efficientsam3 predict`: masks for pictures, by text, boxes and points."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from efficientsam3.data.find import find_images
from efficientsam3.predict.files import predict_files
from efficientsam3.sam3.prompting import Prompts

HELP = "segment pictures by text, boxes and points"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    flag = parser.add_argument
    flag(
        "model",
        type=Path,
        metavar="MODEL",
        help="a merged .pt file, a Hugging Face directory, plain SAM3 (sam3.pt or facebook/sam3's directory), or what "
        "export-onnx wrote, which needs no PyTorch",
    )
    flag("pictures", nargs="+", metavar="IMAGE", help="pictures, folders of pictures, or quoted globs")
    flag(
        "--text",
        action="append",
        default=[],
        metavar="PHRASE",
        help="find everything that a short noun phrase names, such as 'a dog'; repeatable, each asked on its own",
    )
    box: dict[str, Any] = {
        "nargs": 4,
        "type": float,
        "action": "append",
        "default": [],
        "metavar": ("X0", "Y0", "X1", "Y1"),
    }
    flag("--box", help="an example of what to find, in pixels; repeatable; goes to the detector, with the text", **box)
    flag("--negative-box", help="an example of what not to find; repeatable", **box)
    flag(
        "--object-box",
        nargs=4,
        type=float,
        metavar=("X0", "Y0", "X1", "Y1"),
        help="outline the one object in this box; goes to the interactive predictor, with the points",
    )
    point: dict[str, Any] = {"nargs": 2, "type": float, "action": "append", "default": [], "metavar": ("X", "Y")}
    flag("--point", help="a point on the one object to outline, in pixels; repeatable, all on one object", **point)
    flag("--negative-point", help="a point that is not on the object; repeatable", **point)
    flag(
        "--threshold",
        type=float,
        default=0.5,
        metavar="P",
        help="lowest score of what text and boxes find (default: %(default)s)",
    )
    flag(
        "--out",
        type=Path,
        default=Path("output/predict"),
        metavar="DIR",
        help="where overlays, masks and COCO RLE JSON go (default: %(default)s)",
    )
    flag("--device", choices=("auto", "cpu", "mps", "cuda"), default="auto", help="where to compute (default: auto)")
    flag(
        "--variant",
        choices=("fp16", "int8"),
        help="the image encoder of an ONNX directory in another precision, if it was exported with it",
    )


def run(args: argparse.Namespace) -> None:
    """Prompt the pictures, and print what was found."""
    boxes, negative_boxes = args.box, args.negative_box
    points, negative_points = args.point, args.negative_point
    prompts = Prompts(
        texts=tuple(args.text),
        boxes=(*boxes, *negative_boxes),
        box_labels=(1,) * len(boxes) + (0,) * len(negative_boxes),
        points=(*points, *negative_points),
        labels=(1,) * len(points) + (0,) * len(negative_points),
        object_box=args.object_box,
    )
    pictures = find_images(args.pictures)
    report = predict_files(
        args.model,
        pictures,
        prompts,
        args.out,
        threshold=args.threshold,
        device=args.device,
        variant=args.variant,
    )
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for path, count in report.written.items():
        console.print(f"{count:4d} object{'s' if count != 1 else ' '}  {path}")
    if prompts.detections and 0 in report.written.values():
        console.print(
            f"Where there are none, nothing scored {args.threshold:g} or more: ask otherwise, or lower --threshold."
        )
    for broken in report.broken:
        console.print(f"     skipped  {broken}, which cannot be read")
