"""`efficientsam3 distill`: from a folder of pictures to a merged model, in one command."""

import argparse
from pathlib import Path

from efficientsam3.runtime.cores import usable_cores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.epilog = (
        "It runs plan, export, train, evaluate and merge, and prints each one's command as it starts. Interrupt it "
        "when you like: the same command goes on where it stopped. Its configurations, OUT/export.yaml and "
        "OUT/train.yaml, are what the single commands take."
    )
    flag = parser.add_argument
    flag(
        "--images",
        type=Path,
        required=True,
        metavar="DIR",
        help="your pictures: any tree of folders, of which 10 %% are kept for validation unless there are folders "
        "train/ and val/; or SA-1B's layout; or COCO's",
    )
    flag("--sam3", type=Path, required=True, metavar="PATH", help="the teacher: sam3.pt, or facebook/sam3's directory")
    flag(
        "--student",
        required=True,
        metavar="NAME",
        help="es_ev_s (0.7M parameters) to es_rv_l (22M), see the README; or timm/<name>, any backbone of timm's",
    )
    flag("--out", type=Path, required=True, metavar="DIR", help="where everything goes")
    flag(
        "--dataset",
        choices=("sa1b", "images", "coco"),
        help="how DIR is laid out (default: images/train tells sa1b, train2017 tells coco, anything else images)",
    )
    flag("--epochs", type=_positive, default=50, metavar="N", help="of training (default: %(default)s)")
    flag(
        "--batch-size",
        type=_positive,
        default=4,
        metavar="N",
        help="images per process and step (default: %(default)s)",
    )
    flag(
        "--processes", type=_positive, default=1, metavar="N", help="on this machine, one a GPU (default: %(default)s)"
    )
    flag(
        "--head",
        choices=("published", "fpn"),
        default="published",
        help="fpn fuses strides 8, 16 and 32: fewer parameters, half the work (default: %(default)s)",
    )
    flag(
        "--pretrained",
        default="true",
        metavar="WHAT",
        help="true: ImageNet weights, which timm downloads; false: from scratch; or a local file (default: true)",
    )
    flag(
        "--workers",
        type=int,
        default=min(2, usable_cores()),
        metavar="N",
        help="picture-reading processes a process (default: 2, or 1 on one core)",
    )
    flag("--seed", type=int, default=0, metavar="N", help="of the whole run (default: %(default)s)")
    flag("--device", choices=("auto", "cpu", "mps", "cuda"), default="auto", help="where to compute (default: auto)")
    store = parser.add_mutually_exclusive_group()
    store.add_argument(
        "--codec",
        default="float16",
        metavar="CODEC",
        help="how the teacher's embeddings are stored: float16, int8, int4, pca{K}-int8 or -int4 (default: float16)",
    )
    store.add_argument(
        "--online", action="store_true", help="store none: the teacher runs in the training loop, every epoch again"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def run(args: argparse.Namespace) -> None:
    """Run what is not complete."""
    from efficientsam3.workflow.run import distill
    from efficientsam3.workflow.settings import DistillRequest

    names = set(DistillRequest.__dataclass_fields__)
    distill(DistillRequest(**{name: value for name, value in vars(args).items() if name in names}))
