"""What each form of a student's embedding differs by from PyTorch's, on images, at SAM3's size.

    python benchmarks/onnx_parity.py --images DIR --calibrate DIR [--student es_rv_s ...] [--head fpn]

Weights are random, BatchNorm's statistics those of the first eight calibration images: the figures are of the
arithmetic, not of what a trained student loses.
"""

import argparse
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from efficientsam3.benchmark.parameters import select_students
from efficientsam3.data.preprocess import SAM3_PREPROCESSING
from efficientsam3.export.calibration import EncoderInputs
from efficientsam3.export.onnx.manifest import GraphFile, OnnxManifest
from efficientsam3.export.onnx.run import export_onnx
from efficientsam3.export.parity import relative_error
from efficientsam3.models.fuse import fuse_modules
from efficientsam3.models.heads import DEFAULT_HEAD, HEADS
from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.models.students import STUDENTS
from efficientsam3.runtime.device import describe_machine

_COLUMNS = (
    *("student", "fused", "fp32", "MB", "fp16", "cosine", "MB", "in fp32", "int8", "cosine", "MB", "in fp32"),
    *("s",),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", "--pictures", type=Path, required=True, help="the first ten are compared on")
    parser.add_argument("--calibrate", type=Path, required=True, help="the first hundred set the ranges")
    parser.add_argument("--student", nargs="+", default=["all"])
    parser.add_argument("--head", choices=HEADS, default=DEFAULT_HEAD)
    args = parser.parse_args()
    console = Console(width=150)
    table = Table(title=f"Relative error of the embedding, worst of the images; {args.head} head")
    for column in _COLUMNS:
        table.add_column(column, no_wrap=True, justify="left" if column == "student" else "right")
    for name in select_students(args.student):
        row = measure(name, args.head, args.images, args.calibrate)
        table.add_row(name, *row)
        console.print(name, *row)  # a table of nine takes its time
    console.print(table)
    print(f"{describe_machine()}, {torch.get_num_threads()} threads")


def measure(name: str, head: str, images: Path, calibrate: Path) -> list[str]:
    """One student's row."""
    start = time.perf_counter()
    torch.manual_seed(0)
    student = Student(StudentArchitecture(STUDENTS[name].backbone, head=head))
    settle(student, EncoderInputs(calibrate, SAM3_PREPROCESSING, 8))
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch, "student.pth")
        described = {"architecture": asdict(student.architecture), "preprocessing": SAM3_PREPROCESSING.model_dump()}
        torch.save({"model": student.state_dict(), **described}, checkpoint)
        manifest = export_onnx(
            checkpoint, Path(scratch, "onnx"), variants=["fp16", "int8"], calibrate=calibrate, images=images
        )
    fused = fused_error(student, EncoderInputs(images, SAM3_PREPROCESSING, 10))
    return [f"{fused:.1e}", *cells(manifest), f"{time.perf_counter() - start:.0f}"]


@torch.no_grad()
def settle(student: Student, images: EncoderInputs) -> None:
    """Give BatchNorms the statistics of images; without, random weights' values vanish or explode."""
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of this batch alone, so that evaluation sees what training did
    student.train()
    student(torch.cat(list(images)))
    student.eval()


@torch.inference_mode()
def fused_error(student: Student, images: EncoderInputs) -> float:
    """Of the fused student in PyTorch."""
    side = student.architecture.image_size
    fused = fuse_modules(student, (1, 3, side, side))
    return max(relative_error(student(pixels).numpy(), fused(pixels).numpy()) for pixels in images)


def cells(manifest: OnnxManifest) -> list[str]:
    """Of the graphs: errors, cosines, sizes, and how many nodes stay in float32."""
    plain = manifest.graphs["image_encoder"]
    row = [f"{plain.measured['relative_error']:.1e}", megabytes(plain)]
    for variant in ("fp16", "int8"):
        file = manifest.variants[variant]
        row += [f"{file.measured['relative_error']:.1e}", f"{file.measured['cosine']:.4f}", megabytes(file)]
        row.append(str(len(file.fp32_nodes)))
    return row


def megabytes(file: GraphFile) -> str:
    """A graph's size."""
    return f"{file.bytes / 1e6:.1f}"


if __name__ == "__main__":
    main()
