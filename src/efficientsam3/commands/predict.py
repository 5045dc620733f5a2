"""`efficientsam3 predict`: masks for pictures, by text, boxes and points."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from efficientsam3.data.find import find_images
from efficientsam3.predict.files import predict_files
from efficientsam3.predict.request import PredictRequest
from efficientsam3.sam3.prompts import ConceptPrompt


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
        help="segment the one object in this box; goes to the tracker, with the points",
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
    request = PredictRequest(
        **{name: getattr(args, "pictures" if name == "images" else name) for name in PredictRequest.model_fields}
    )
    report = predict_files(
        request.model,
        find_images(request.images),
        request.prompts,
        request.out,
        threshold=request.threshold,
        device=request.device,
        variant=request.variant,
    )
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for path, count in report.written.items():
        console.print(f"{count:4d} object{'s' if count != 1 else ' '}  {path}")
    if any(isinstance(prompt, ConceptPrompt) for prompt in request.prompts) and 0 in report.written.values():
        console.print(
            f"Where there are none, nothing scored {args.threshold:g} or more: ask otherwise, or lower --threshold."
        )
    for broken in report.broken:
        console.print(f"     skipped  {broken}, which cannot be read")
