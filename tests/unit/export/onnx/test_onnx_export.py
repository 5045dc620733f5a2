"""Exporting: what the graphs take and give, which are left out, and that none stays that computes something else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from efficientsam3.cli import main
from efficientsam3.export.graphs import Graph, build_graphs
from efficientsam3.export.onnx import run as onnx_export
from efficientsam3.export.onnx.manifest import MANIFEST, open_graph, read_onnx_manifest
from efficientsam3.export.onnx.run import export_onnx, run_graph
from efficientsam3.export.parity import check, figures, relative_error
from efficientsam3.merge.run import merge
from efficientsam3.models.student_files import load_student_and_preprocessing
from efficientsam3.predict.onnx_sam3 import OnnxSAM3
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.own_files import LIST_NAME
from efficientsam3.sam3.build import build_models
from efficientsam3.sam3.contents import read_contents

Make = Callable[..., Path]
GRAPHS = ["image_encoder", "text_encoder", "detector_neck", "detector", "interactive_neck", "interactive"]


@pytest.fixture(scope="module")
def graphs(merged: Path) -> dict[str, Graph]:
    contents = read_contents(merged)
    return {graph.name: graph for graph in build_graphs(build_models(contents), contents.preprocessing.image_size)}


def test_the_directory_holds_what_its_json_says(exported: Path) -> None:
    manifest = read_onnx_manifest(exported)
    assert list(manifest.graphs) == GRAPHS
    assert {file.name for file in exported.iterdir()} == {MANIFEST, LIST_NAME, "tokenizer.json"} | {
        f"{g}.onnx" for g in GRAPHS
    }
    for entry in manifest.graphs.values():
        model = onnx.load(exported / entry.file)
        assert model.opset_import[0].version == entry.opset
        assert {node.domain for node in model.graph.node} == {""}  # onnxruntime-web has no operators but ONNX's own
        for values, ports in ((model.graph.input, entry.inputs), (model.graph.output, entry.outputs)):
            found = [
                (value.name, tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim))
                for value in values
            ]
            assert found == [(port.name, port.shape) for port in ports]
    assert manifest.graphs["image_encoder"].measured["relative_error"] <= 1e-4
    assert manifest.graphs["detector"].measured["mask_iou"] >= 0.999


def test_no_constant_is_written_twice(exported: Path) -> None:
    graph = onnx.load(exported / "detector.onnx").graph
    constants = [node.attribute[0].SerializeToString() for node in graph.node if node.op_type == "Constant"]
    assert constants
    assert len(set(constants)) == len(constants)


def longer(graph: Graph, value: torch.Tensor, name: str) -> torch.Tensor:
    """Three instead of two or so, along every free axis."""
    for axis, what in graph.axes.get(name, {}).items():
        index = torch.arange({"batch": 3, "points": 5, "boxes": 4, "tokens": 7}[what]) % value.shape[axis]
        value = value.index_select(axis, index)
    return value


@pytest.mark.parametrize("name", GRAPHS)
def test_free_lengths_are_free(name: str, graphs: dict[str, Graph], exported: Path) -> None:
    graph = graphs[name]
    given = {key: longer(graph, value, key) for key, value in graph.inputs.items()}
    found = figures(graph.run(given), run_graph(open_graph(exported / f"{name}.onnx"), given))
    assert found.get("relative_error", 0) <= 1e-5
    assert found.get("score_error", 0) <= 1e-5
    assert found.get("mask_iou", 1) >= 0.999


def test_other_trunks(tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path) -> None:
    """TinyViT's windows, and SAM3's own trunk."""
    for number, model in enumerate((student_checkpoint("tiny_vit_5m"), tiny_sam3_path)):
        manifest = export_onnx(model, tmp_path / str(number))
        assert manifest.graphs["image_encoder"].measured["relative_error"] <= 1e-4


def test_what_is_written_is_fused(tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path) -> None:
    """RepViT's branches are one convolution each, whether the model was merged with --fuse or not merged at all."""
    fused, convolutions = tmp_path / "fused.pt", []
    merge(student_checkpoint("repvit_m0_9"), tiny_sam3_path, fused, keep=["tracker"], fuse=True)
    for number, model in enumerate((student_checkpoint("repvit_m0_9"), fused)):
        out = tmp_path / str(number)
        assert export_onnx(model, out).graphs["image_encoder"].measured["relative_error"] <= 1e-4
        nodes = onnx.load(out / "image_encoder.onnx").graph.node
        assert not [node for node in nodes if node.op_type == "BatchNormalization"]
        convolutions.append(len([node for node in nodes if node.op_type == "Conv"]))
    assert convolutions[0] == convolutions[1] > 0


@pytest.mark.parametrize("head", ["fpn", "fpn4"])
def test_a_checkpoint_of_a_training_is_an_encoder(head: str, student_checkpoint: Make, tmp_path: Path) -> None:
    checkpoint = student_checkpoint("efficientvit_b0", head)
    manifest = export_onnx(checkpoint, tmp_path / "out")
    assert list(manifest.graphs) == ["image_encoder"]
    student, preprocessing = load_student_and_preprocessing(checkpoint)
    assert manifest.preprocessing == preprocessing
    pixels = torch.rand(1, 3, preprocessing.image_size, preprocessing.image_size)
    [embedding] = run_graph(open_graph(tmp_path / "out" / "image_encoder.onnx"), {"pixels": pixels})
    with torch.no_grad():
        assert relative_error(student(pixels).numpy(), embedding) <= 1e-4
    with pytest.raises(UserError, match="has no tracker"):
        OnnxSAM3.from_pretrained(tmp_path / "out").encode(np.zeros((8, 8, 3), np.uint8)).segment(points=[(1, 1)])


def test_parts_left_out_have_no_graph(tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path) -> None:
    merge(student_checkpoint(), tiny_sam3_path, tmp_path / "image.pt", keep=["image"])
    manifest = export_onnx(tmp_path / "image.pt", tmp_path / "out")
    assert list(manifest.graphs) == ["image_encoder", "detector_neck", "detector"]
    assert manifest.tokenizer is None
    assert manifest.visual_prompt is not None
    stored = read_contents(tmp_path / "image.pt").visual_prompt
    assert torch.equal(torch.tensor(manifest.visual_prompt), stored)
    assert read_onnx_manifest(tmp_path / "out") == manifest


def test_a_graph_that_differs_is_not_left_behind(
    merged: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MANIFEST).write_text("an earlier one")
    run = onnx_export.run_graph

    def wrong(session: Any, inputs: dict[str, torch.Tensor]) -> Any:
        outputs = run(session, inputs)
        return [output * 1.001 for output in outputs] if "embedding" in inputs else outputs

    monkeypatch.setattr(onnx_export, "run_graph", wrong)
    with pytest.raises(UserError, match=r"graph detector_neck differs from PyTorch: relative error 0\.001"):
        export_onnx(merged, tmp_path / "out", overwrite=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", MANIFEST]
    assert (tmp_path / "out" / MANIFEST).read_text() == "an earlier one"


def test_figures_see_what_is_wrong() -> None:
    masks = torch.tensor([[[1.0, -1.0], [1.0, 1.0]]])
    expected = {"mask_logits": masks, "scores": torch.tensor([0.5])}
    turned = masks.clone()
    turned[0, 0, 0] = -1
    found = figures(expected, [turned.numpy(), torch.tensor([0.7]).numpy()])
    assert found == {"mask_iou": pytest.approx(2 / 3), "score_error": pytest.approx(0.2)}
    with pytest.raises(UserError, match="nan"):
        check("It", {"mask_iou": float("nan")}, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.pt", "--out", "new"], "absent.pt does not exist"),
        (["{merged}", "--out", "taken"], "would replace taken/thesis.txt, which efficientsam3 did not write"),
        (["{merged}", "--out", "new", "--pictures", "empty"], "No image matches"),
    ],
)
def test_the_command_refuses_before_it_begins(
    arguments: list[str],
    message: str,
    merged: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").mkdir()
    Path("taken", "thesis.txt").write_text("")
    Path("empty").mkdir()
    assert main(["export-onnx", *(argument.format(merged=merged) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert not Path("new").exists()


def test_json_that_is_not_understood(exported: Path, tmp_path: Path) -> None:
    record = json.loads((exported / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(record | {"format_version": 2}))
    with pytest.raises(UserError, match="is not understood"):
        read_onnx_manifest(tmp_path)
