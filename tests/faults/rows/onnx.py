"""ONNX: exported directories, and encoders as teachers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from faults.fault import Expect, Fault, Outcome, Place, Run, refused, snapshot, works
from faults.rows.weights import ASK, edit_json, overwrite
from faults.system import small_disk

_TEXT = "predict {onnx} " + ASK + " --text dog"
_POINT = "predict {onnx} " + ASK + " --point 50 50"
_EXPORT = (
    "export --cfg {checkout}/stage1/configs/teacher/sam_vit_huge_sa1b.yaml --data-path {data} --output {root}/out "
    "--resume {root}/encoder.onnx --batch-size 2 --opts DATA.IMG_SIZE 224 DISTILL.EMBED_SIZE 16 DISTILL.EMBED_DIM 8 "
    "DATA.NUM_WORKERS 0 DATA.RESIZE square DATA.MEAN [0.5,0.5,0.5] DATA.STD [0.5,0.5,0.5]"
)


def _manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Place], None]:
    return lambda place: edit_json(place.onnx / "model.json", change)


def _graphs(value: str) -> Callable[[Place], None]:
    def change(manifest: dict[str, Any]) -> None:
        for graph in manifest["graphs"].values():
            graph["file"] = value

    return _manifest(change)


def _tokenizer(value: str) -> Callable[[Place], None]:
    return _manifest(lambda manifest: manifest["tokenizer"].update(file=value))


def _swap(place: Place) -> None:
    one, other = (place.onnx / f"{name}.onnx" for name in ("interactive", "interactive_neck"))
    one.rename(place.onnx / "x")
    other.rename(one)
    (place.onnx / "x").rename(other)


def _flip(place: Place) -> None:
    overwrite(place.onnx / "image_encoder.onnx", b"\x3c" * 4000)


def _cut(name: str, size: int) -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        with (place.onnx / name).open("r+b") as file:
            file.truncate(size)

    return spoil


_ANSWERS: list[tuple[str, str, str, Callable[[Place], object], Expect]] = [
    ("V15m2", "tokenizer /etc/passwd", _TEXT, _tokenizer("/etc/passwd"), refused("model.json", "tokenizer")),
    ("X-swap", "two graphs swapped", _POINT, _swap, refused("interactive_neck.onnx", "sha-256")),
    ("X-flip", "4000 bytes of image_encoder.onnx changed", _TEXT, _flip, refused("image_encoder.onnx", "sha-256")),
    ("X-tok", "tokenizer.json cut short", _TEXT, _cut("tokenizer.json", 1000), refused("tokenizer.json")),
    (
        "X-tok2",
        "tokenizer.json missing",
        _TEXT,
        lambda place: (place.onnx / "tokenizer.json").unlink(),
        refused("tokenizer.json"),
    ),
    (
        "X-size",
        "model.json image_size 100",
        _TEXT,
        _manifest(lambda manifest: manifest["preprocessing"].update(image_size=100)),
        refused("model.json", "100", "224"),
    ),
    ("onnx-h1", "graph file ../../etc/passwd", _TEXT, _graphs("../../etc/passwd"), refused("model.json")),
    ("onnx-h2", "graph file ..", _TEXT, _graphs(".."), refused("onnx")),
    ("onnx-h3", "graph file empty", _TEXT, _graphs(""), refused("model.json")),
    ("onnx-h4", "graph file with backslashes", _TEXT, _graphs("..\\..\\x"), refused("onnx")),
    ("onnx-h5", "no graphs", _TEXT, _manifest(lambda manifest: manifest.update(graphs={})), refused("onnx")),
    (
        "onnx-h12",
        "image_encoder.onnx cut short",
        _TEXT,
        _cut("image_encoder.onnx", 9999),
        refused("image_encoder.onnx"),
    ),
    (
        "new-onnx-1",
        "model.json of 100000 brackets",
        _TEXT,
        lambda place: (place.onnx / "model.json").write_text("[" * 100_000),
        refused("model.json"),
    ),
    (
        "new-onnx-2",
        "std 0 in model.json",
        _TEXT,
        _manifest(lambda manifest: manifest["preprocessing"].update(std=[0, 0, 0])),
        refused("model.json", "std"),
    ),
    (
        "new-onnx-3",
        "context_length 10^9 in model.json",
        _TEXT,
        _manifest(lambda manifest: manifest["tokenizer"].update(context_length=10**9)),
        refused("model.json", "context_length"),
    ),
]


def _nan_head(place: Place) -> None:
    """A detector that gives NaN, with its right SHA-256: what a model exported from a diverged one would be."""
    import hashlib

    path = place.onnx / "detector.onnx"
    model = onnx.load(path)
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT:
            values = np.full_like(numpy_helper.to_array(weight), np.nan)
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)
    content = path.read_bytes()

    def change(manifest: dict[str, Any]) -> None:
        found = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest["graphs"]["detector"].update(found)

    edit_json(place.onnx / "model.json", change)


def _encoder(path: Path, weight: float = 0.5, second: bool = False, custom: bool = False, data: str = "") -> None:
    """An encoder of 224 pixels to (8, 16, 16): a strided convolution."""
    weights = numpy_helper.from_array(np.full((8, 3, 1, 1), weight, np.float32), "w")
    if data:
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=data)
    node = helper.make_node("Conv", ["x", "w"], ["c"], strides=[14, 14])
    nodes = [node, helper.make_node("Add", ["c", "z"] if second else ["c", "c"], ["y"])]
    if custom:
        nodes[1] = helper.make_node("Evil", ["c"], ["y"], domain="evil")
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 3, 224, 224])]
    if second:
        inputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 8, 16, 16])]
    graph = helper.make_graph(nodes, "encoder", inputs, outputs, [weights])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("evil", 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def _teacher(**options: Any) -> Callable[[Place], None]:
    return lambda place: _encoder(place.root / "encoder.onnx", **options)


def _linked(place: Place) -> None:
    (place.root / "weights.bin").symlink_to("/etc/passwd")
    _encoder(place.root / "encoder.onnx", data="weights.bin")


def _infinite_or_nan(place: Place, run: Run) -> None:
    for weight in (float("nan"), float("-inf")):
        _encoder(place.root / "encoder.onnx", weight)
        outcome = run(_EXPORT)
        refused("finite", "sa_")(place, outcome)
        shutil.rmtree(place.root / "out")


def _user_folder(place: Place) -> Path:
    folder = place.root / "mine"
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps({"modelTopology": {}}))
    (folder / "notes.txt").write_text("mine")
    return folder


def _into_a_users_folder(place: Place, run: Run) -> None:
    folder, model = _user_folder(place), place.merged
    before = snapshot(place.root)
    outcome = run(["export-onnx", model, "--out", "."], cwd=folder)
    refused()(place, outcome)
    refused().compare(before, snapshot(place.root), outcome)


def _full_disk(place: Place, run: Run) -> None:
    _ = place.merged
    with small_disk(place.root / "disk", "5m") as disk:
        refused("disk", "space")(place, run("export-onnx {merged} --out {root}/disk/onnx"))
        assert not list(disk.iterdir()), "something is left there"


def _stored(place: Place, outcome: Outcome) -> None:
    works()(place, outcome)
    assert list((place.root / "out/embeddings").glob("*-values.bin")), outcome


_NO_FILE = ("out*",)
_OUTSIDE = refused("encoder.onnx", changes=_NO_FILE)

ROWS = [
    *[
        Fault(case, f"ONNX directory, {what}: predict", command, expect, spoil, slow=case not in ("X-swap", "X-flip"))
        for case, what, command, spoil, expect in _ANSWERS
    ],
    Fault("new-onnx-4", "a graph that gives NaN: predict", _TEXT, refused("finite"), _nan_head),
    Fault("X-two", "ONNX teacher: a second input: export", _EXPORT, refused("x, z"), _teacher(second=True), slow=True),
    Fault("onnx-h6", "ONNX teacher: works: export", _EXPORT, _stored, _teacher(), slow=True),
    *[
        Fault(case, f"ONNX teacher: external data {where}: export", _EXPORT, _OUTSIDE, _teacher(data=where), slow=True)
        for case, where in (("onnx-h7", "../../../../etc/passwd"), ("onnx-h8", "/etc/passwd"))
    ],
    Fault("onnx-h9", "ONNX teacher: external data through a link: export", _EXPORT, _OUTSIDE, _linked, slow=True),
    Fault("onnx-h10", "ONNX teacher: custom op: export", _EXPORT, _OUTSIDE, _teacher(custom=True), slow=True),
    Fault("onnx-h11", "ONNX teacher: -inf and NaN outputs: export", _infinite_or_nan, slow=True),
    Fault(
        "onnx-h14",
        "ONNX teacher with NaN output: export",
        _EXPORT,
        refused("finite", "sa_"),
        _teacher(weight=float("nan")),
        slow=True,
    ),
    Fault("onnx-h13", "export-onnx onto a full disk", _full_disk, slow=True),
    Fault("onnx-h15", "export-onnx --out . in a user's folder with model.json", _into_a_users_folder, slow=True),
]
