"""The image encoder in float16 and int8: what stays in float32, and that its cost in accuracy is reported."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from efficientsam3.cli import main
from efficientsam3.export.onnx.manifest import open_graph, read_onnx_manifest
from efficientsam3.export.onnx.variants import measure_variant, write_float16
from efficientsam3.export.parity import relative_error
from efficientsam3.predict.onnx_sam3 import OnnxSAM3
from efficientsam3.runtime.errors import UserError


def types_of(path: Path) -> dict[str, int]:
    """Element type of every value in a graph."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    return {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}


def test_what_each_costs_is_in_the_json(with_variants: Path, photographs_path: Path) -> None:
    manifest = read_onnx_manifest(with_variants)
    assert list(manifest.variants) == ["fp16", "int8"]
    images = sorted((photographs_path / "images" / "train").glob("*.jpg"))
    assert manifest.pictures == tuple(path.name for path in images)
    for variant, limit in (("fp16", 0.01), ("int8", 0.3)):
        measured = manifest.variants[variant].measured
        errors = []
        for path in images:
            plain, other = (OnnxSAM3.from_pretrained(with_variants, v).encode(path) for v in (None, variant))
            errors.append(relative_error(plain.embedding, other.embedding))
        assert measured["relative_error"] == pytest.approx(max(errors), rel=0.1)
        assert 0 < measured["relative_error"] < limit
        assert 0.9 < measured["cosine"] <= 1.0001


def test_float16_keeps_the_doors_and_linear_attention_in_float32(with_variants: Path) -> None:
    entry = read_onnx_manifest(with_variants).variants["fp16"]
    model, types = onnx.load(with_variants / entry.file), types_of(with_variants / entry.file)
    assert {types["pixels"], types["embedding"]} == {TensorProto.FLOAT}
    attention = [node for node in model.graph.node if node.op_type == "MatMul" and "context_module" in node.name]
    assert len(attention) == 8  # two in each of four blocks
    assert {node.name for node in attention} <= set(entry.fp32_nodes)
    assert {types[node.output[0]] for node in attention} == {TensorProto.FLOAT}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert {types[node.output[0]] for node in convolutions} == {TensorProto.FLOAT16}


def test_int8_weights_are_per_channel(with_variants: Path) -> None:
    entry = read_onnx_manifest(with_variants).variants["int8"]
    model = onnx.load(with_variants / entry.file)
    makers = {output: node for node in model.graph.node for output in node.output}
    constants = {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert convolutions
    for node in convolutions:
        weight = makers[node.input[1]]
        assert weight.op_type == "DequantizeLinear"
        assert constants[weight.input[0]].dtype == np.int8
        assert constants[weight.input[1]].shape == (len(constants[weight.input[0]]),)
    assert {node.op_type for node in model.graph.node if node.name in entry.fp32_nodes} >= {"MatMul", "Div"}
    assert (with_variants / entry.file).stat().st_size < 0.6 * (with_variants / "image_encoder.onnx").stat().st_size


def large_sums(path: Path) -> None:
    """A graph whose second node's values are beyond float16, and whose third's are small again."""
    nodes = [
        helper.make_node("Relu", ["pixels"], ["a"], name="small"),
        helper.make_node("Mul", ["a", "million"], ["b"], name="large"),
        helper.make_node("Div", ["b", "million"], ["c"], name="back"),
        helper.make_node("Relu", ["c"], ["embedding"], name="end"),
    ]
    shape = [1, 3, 8, 8]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("pixels", "embedding")]
    million = numpy_helper.from_array(np.array(60000.0, dtype=np.float32), "million")
    graph = helper.make_graph(nodes, "graph", ports[:1], ports[1:], [million])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def test_what_overflows_is_found_by_its_values(tmp_path: Path) -> None:
    large_sums(tmp_path / "image_encoder.onnx")
    pixels = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 8
    kept = write_float16(tmp_path / "image_encoder.onnx", tmp_path / "float16.onnx", [pixels])
    assert kept == ("large", "back")
    measured = measure_variant("fp16", tmp_path / "image_encoder.onnx", tmp_path / "float16.onnx", [pixels])
    assert measured["relative_error"] < 1e-3


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    large_sums(tmp_path / "image_encoder.onnx")
    model = onnx.load(tmp_path / "image_encoder.onnx")
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array(np.inf, dtype=np.float32), "million"))
    onnx.save(model, tmp_path / "float16.onnx")
    pixels = torch.ones(1, 3, 8, 8)
    with pytest.raises(UserError, match="fp16 image encoder gives values that are not finite"):
        measure_variant("fp16", tmp_path / "image_encoder.onnx", tmp_path / "float16.onnx", [pixels])


def test_predicting_with_a_variant_runs_it(
    with_variants: Path, photographs_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(
        "efficientsam3.export.onnx.manifest.open_graph",
        lambda path, *_: opened.append(path.name) or open_graph(path),  # type: ignore[func-returns-value]
    )
    image = str(sorted(photographs_path.rglob("*.jpg"))[0])
    command: list[Any] = ["predict", str(with_variants), image, "--point", "9", "9", "--out", str(tmp_path)]
    assert main([*command, "--variant", "int8"]) == 0
    assert opened == ["image_encoder_int8.onnx", "interactive_neck.onnx", "interactive.onnx"]


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--variants", "int8"], "int8 needs --calibrate DIR"), (["--calibrate", "."], "--calibrate has no effect")],
)
def test_int8_needs_pictures(
    options: list[str], message: str, merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export-onnx", str(merged), "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
