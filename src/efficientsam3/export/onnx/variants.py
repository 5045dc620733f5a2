"""The image encoder in float16 and int8, and what that costs."""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efficientsam3.export.float16 import LARGEST, LINEAR_ATTENTION_PLACE
from efficientsam3.export.onnx.manifest import Variant, open_graph
from efficientsam3.export.parity import relative_error, worst
from efficientsam3.export.ports import PIXELS
from efficientsam3.runtime.errors import UserError

# Operators of linear attention that sum over all cells, and the end of their nodes' names.
_SUMS = ("MatMul", "Add", "Slice", "Div")
_LINEAR_ATTENTION = "/" + LINEAR_ATTENTION_PLACE.replace(".", "/")


def write_float16(source: Path, target: Path, images: Iterable[torch.Tensor]) -> tuple[str, ...]:
    """Write a graph with float16 weights and values, its inputs and outputs still float32.

    Returns:
        names of the nodes that stay in float32: linear attention, and those whose values come near float16's limit on
        the images.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = onnx.load(source)
    largest = _largest_values(source, images)
    kept = [node.name for node in model.graph.node if _overflows(node, largest)]
    converted = convert_float_to_float16(model, keep_io_types=True, node_block_list=kept)
    _drop_round_trips(converted.graph, set(kept))
    result = OnnxModel(converted)
    result.prune_graph()
    result.topological_sort()  # the converter puts its own nodes last, which onnx's checker refuses
    onnx.save(result.model, target)
    return tuple(kept)


def _overflows(node: Any, largest: dict[str, float]) -> bool:
    values = [largest[name] for name in (*node.input, *node.output) if name in largest]
    return bool(values) and (_is_linear_attention(node) or max(values) > LARGEST)


def _is_linear_attention(node: Any) -> bool:
    return node.op_type in _SUMS and node.name.rpartition("/")[0].endswith(_LINEAR_ATTENTION)


def _largest_values(source: Path, images: Iterable[torch.Tensor]) -> dict[str, float]:
    """The largest magnitude of every float value in the graph, on the images."""
    from onnxruntime.quantization.calibrate import MinMaxCalibrater

    with tempfile.TemporaryDirectory() as scratch:
        calibrater = MinMaxCalibrater(source, augmented_model_path=str(Path(scratch, "augmented.onnx")))
        calibrater.augment_graph()
        calibrater.create_inference_session()
        calibrater.collect_data(_CalibrationReader(images))
        ranges = calibrater.compute_data().data
    return {name: float(np.abs(np.asarray(found.range_value)).max()) for name, found in ranges.items()}


def _drop_round_trips(graph: Any, kept: set[str]) -> None:
    """Let float32 nodes take each other's values directly; the converter casts them to float16 and back."""
    makers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        for index, name in enumerate(node.input):
            up = makers.get(name)
            down = makers.get(up.input[0]) if up is not None and up.op_type == "Cast" else None
            if node.name in kept and down is not None and down.op_type == "Cast":
                maker = makers.get(down.input[0])
                if maker is not None and maker.name in kept:
                    node.input[index] = down.input[0]


def write_int8(source: Path, target: Path, images: Iterable[torch.Tensor]) -> tuple[str, ...]:
    """Write a graph whose convolutions and matrix products have int8 weights, per channel, and uint8 values.

    As pairs of QuantizeLinear and DequantizeLinear. Weights use 7 of their 8 bits, since CPUs without VNNI add products
    up in 16 bits, saturating: with all 8, a student's embedding was off by 0.32 rather than 0.14 on such a CPU.

    Returns:
        names of the nodes that stay in float32: linear attention.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch, "prepared.onnx")
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
        kept = [
            node.name
            for node in graph.node
            if _is_linear_attention(node) and types.get(node.output[0]) == onnx.TensorProto.FLOAT
        ]
        quantize_static(
            str(prepared),
            str(target),
            _CalibrationReader(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            op_types_to_quantize=["Conv", "MatMul"],
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=kept,
            # The mean of the images' ranges: one image's outlier does not coarsen the scale for all.
            extra_options={"CalibMovingAverage": True},
        )
    return tuple(kept)


class _CalibrationReader:
    """Images as onnxruntime's calibration asks for them."""

    def __init__(self, images: Iterable[torch.Tensor]) -> None:
        self._images: Iterator[torch.Tensor] = iter(images)

    def get_next(self) -> dict[str, Any] | None:
        pixels = next(self._images, None)
        return None if pixels is None else {PIXELS: pixels.numpy()}


def measure_variant(variant: Variant, source: Path, target: Path, images: Iterable[torch.Tensor]) -> dict[str, float]:
    """The error of a variant's embedding against the float32 graph's, the worst of all images.

    Returns:
        `relative_error` of the embedding as a vector, and `cosine`, the mean of its cells' cosine similarities.

    Raises:
        UserError: the embedding has values that are not finite.
    """
    expected_by, found_by = open_graph(source), open_graph(target)
    rows = []
    for pixels in images:
        given = {PIXELS: pixels.numpy()}
        expected, found = (session.run(None, given)[0] for session in (expected_by, found_by))
        if not np.isfinite(found).all():
            raise UserError(f"The {variant} image encoder gives values that are not finite: leave {variant} out.")
        lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
        cosines = (expected * found).sum(1) / lengths.clip(min=1e-12)
        rows.append({"relative_error": relative_error(expected, found), "cosine": float(cosines.mean())})
    return worst(rows)
