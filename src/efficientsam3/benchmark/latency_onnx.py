"""Students in ONNX Runtime, as `export-onnx` writes them, to be timed."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from efficientsam3.export.graphs import student_graph
from efficientsam3.export.onnx.manifest import open_graph
from efficientsam3.export.onnx.variants import write_int8
from efficientsam3.export.onnx.write import require_packages, write_graph
from efficientsam3.models.student import Student


def onnx_forwards(student: Student, pixels: torch.Tensor, int8: bool) -> dict[str, Callable[[], object]]:
    """Forward passes by ONNX Runtime on the CPU, `onnx` and, if asked for, `onnx int8`.

    Args:
        student: on the CPU, in eval mode.
        pixels: (1, 3, S, S) float32; int8's scales are of this input, on which time does not depend.
        int8: whether that one is built too, which takes as long as a dozen forward passes.

    Raises:
        UserError: onnx or onnxruntime is not installed.
    """
    require_packages()
    graph = student_graph(student)
    given = {"pixels": pixels.numpy()}
    with tempfile.TemporaryDirectory() as scratch:
        files = {"onnx": Path(scratch, "plain.onnx")}
        write_graph(graph, files["onnx"])
        if int8:
            files["onnx int8"] = Path(scratch, "int8.onnx")
            write_int8(files["onnx"], files["onnx int8"], [pixels])
        sessions = {way: open_graph(path) for way, path in files.items()}
    return {way: partial(session.run, None, given) for way, session in sessions.items()}
