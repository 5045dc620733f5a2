"""From a module to an ONNX file."""

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch

from efficientsam3.export.graphs import Graph
from efficientsam3.export.onnx.manifest import GraphFile
from efficientsam3.export.ports import Port
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import sha256_file

OPSET = 17  # the first with LayerNormalization; onnxruntime-web has all of its operators


def require_packages() -> None:
    """Check that the packages for exporting are installed.

    Raises:
        UserError: onnx or onnxruntime is not installed.
    """
    for name in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"Exporting to ONNX needs {name}: run pip install 'efficientsam3[onnx-export]'.")


def write_graph(graph: Graph, path: Path) -> None:
    """Export a graph into one file, fused where it has BatchNorms, and check it with onnx's checker, shapes included.

    By tracing, PyTorch's older exporter: the newer one gives no free lengths with PyTorch 2.6 (it silently falls back
    to another strategy) and takes twenty times as long.

    Raises:
        UserError: the checker refuses the file.
    """
    import onnx

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # about each Python branch that is traced; the result is compared instead
        torch.onnx.export(
            graph.fused,
            tuple(graph.inputs.values()),
            str(path),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_axes={name: axes for name, axes in (graph.axes | graph.outputs).items() if axes},
            opset_version=OPSET,
            dynamo=False,
        )
    proto = onnx.load(path)
    _state_shapes(proto, graph.ports[1])
    _share_constants(proto.graph)
    onnx.save(proto, path)
    check_file(path, graph.name)


def check_file(path: Path, name: str) -> None:
    """Run onnx's checker, shapes included; `name` is for the error.

    Raises:
        UserError: the checker refuses the file.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UserError(
            f"The ONNX graph {name} is refused by onnx {onnx.__version__}'s checker ({error}): export with the "
            "versions in requirements/pinned.txt."
        ) from error


def _state_shapes(proto: Any, outputs: tuple[Port, ...]) -> None:
    """Set the outputs' shapes, where tracing leaves constant lengths open."""
    for value, port in zip(proto.graph.output, outputs, strict=True):
        del value.type.tensor_type.shape.dim[:]
        for length in port.shape:
            dimension = value.type.tensor_type.shape.dim.add()
            setattr(dimension, "dim_value" if isinstance(length, int) else "dim_param", length)


def _share_constants(graph: Any) -> None:
    """Keep one copy of equal constants; tracing writes one for each use of a value."""
    first: dict[bytes, str] = {}
    shared: dict[str, str] = {}
    for node in list(graph.node):
        for index, name in enumerate(node.input):
            node.input[index] = shared.get(name, name)
        if node.op_type == "Constant":
            shared[node.output[0]] = first.setdefault(node.attribute[0].SerializeToString(), node.output[0])
            if shared[node.output[0]] != node.output[0]:
                graph.node.remove(node)


def describe_file(graph: Graph, path: Path, measured: dict[str, float], fp32_nodes: tuple[str, ...] = ()) -> GraphFile:
    """A file's entry in `model.json`."""
    inputs, outputs = graph.ports
    return GraphFile(
        file=path.name,
        bytes=path.stat().st_size,
        sha256=sha256_file(path),
        opset=OPSET,
        inputs=inputs,
        outputs=outputs,
        measured=measured,
        fp32_nodes=fp32_nodes,
    )
