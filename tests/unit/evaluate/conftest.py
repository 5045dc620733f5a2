"""A mask decoder in ONNX that is simple enough to know its answers, and ground truth in both formats."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from pycocotools import mask as coco_mask

from efficientsam3.data.augment import Augmentation
from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.store.manifest import Manifest

SIDE, CELLS, CHANNELS = 64, 4, 8  # of the decoder below: pixels of the encoder's input, cells, channels
Mask = npt.NDArray[np.bool_]
WriteTruth = Callable[[Path, dict[str, list[Mask]]], Path]


@pytest.fixture(scope="session")
def box_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SAM's inputs and outputs; its second mask, of higher score, fills the box, or the 8 pixels around a point.

    Other labels than a box's 2 and 3, or a point's 1 and the padding's -1, make the mask empty.
    """
    path = tmp_path_factory.mktemp("decoder") / "box.onnx"
    onnx.save(_box_model(), path)
    return path


def _box_model() -> onnx.ModelProto:
    middles = np.arange(SIDE, dtype=np.float32) + 0.5
    constants = {
        "xs": middles.reshape(1, 1, 1, SIDE),
        "ys": middles.reshape(1, 1, SIDE, 1),
        "first": np.array(0),
        "second": np.array(1),
        "corner": np.array([1, 1, 1, 1]),
        "nothing": np.full((1, 1, SIDE, SIDE), -1, dtype=np.float32),
        "scores": np.array([[0.25, 0.75]], dtype=np.float32),
        "radius": np.array([4.0], dtype=np.float32),
        "two": np.array([2.0], dtype=np.float32),
        "box_labels": np.array([[2.0, 3.0]], dtype=np.float32),
        "point_labels_wanted": np.array([[1.0, -1.0]], dtype=np.float32),
        "minus": np.array(-1000.0, dtype=np.float32),
    }
    nodes = []

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    node("Gather", ["point_coords", "first"], "p0", axis=1)  # [1, 2]
    node("Gather", ["point_coords", "second"], "p1", axis=1)
    node("Gather", ["point_labels", "first"], "label", axis=1)  # [1]
    node("Less", ["label", "two"], "is_point")
    node("Sub", ["p0", "radius"], "around0")
    node("Add", ["p0", "radius"], "around1")
    node("Where", ["is_point", "around0", "p0"], "low")
    node("Where", ["is_point", "around1", "p1"], "high")
    for axis, name in (("first", "x"), ("second", "y")):
        for bound in ("low", "high"):
            node("Gather", [bound, axis], f"{bound}_{name}_flat", axis=1)
            node("Reshape", [f"{bound}_{name}_flat", "corner"], f"{bound}_{name}")
        node("Sub", [f"{name}s", f"low_{name}"], f"{name}_from")
        node("Sub", [f"high_{name}", f"{name}s"], f"{name}_to")
    node("Min", ["x_from", "x_to", "y_from", "y_to"], "filled")  # positive inside
    # Wrong labels move every logit far below zero.
    node("Where", ["is_point", "point_labels_wanted", "box_labels"], "wanted")
    node("Sub", ["point_labels", "wanted"], "difference")
    node("Abs", ["difference"], "distance")
    node("ReduceMax", ["distance"], "wrong", keepdims=0)
    node("Mul", ["wrong", "minus"], "penalty")
    node("Add", ["filled", "penalty"], "mask")
    node("Concat", ["nothing", "mask"], "low_res_masks", axis=1)
    node("Identity", ["scores"], "iou_predictions")
    node("Identity", ["low_res_masks"], "masks")
    shapes = {
        "image_embeddings": [1, CHANNELS, CELLS, CELLS],
        "point_coords": [1, "points", 2],
        "point_labels": [1, "points"],
        "mask_input": [1, 1, SIDE, SIDE],
        "has_mask_input": [1],
        "orig_im_size": [2],
    }
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in ("masks", "iou_predictions", "low_res_masks")
    ]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "box", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def encode(mask: Mask) -> dict[str, Any]:
    """COCO's compressed run lengths."""
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")}


def noise(path: Path, height: int, width: int) -> None:
    """A picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def write_sa1b() -> WriteTruth:
    """Writes masks by image name as an SA-1B folder's val split, with a point of each; returns the folder."""

    def write(root: Path, masks: dict[str, list[Mask]]) -> Path:
        for number, (name, of_image) in enumerate(masks.items()):
            height, width = of_image[0].shape
            noise(root / "images" / "val" / f"{name}.jpg", height, width)
            image = {"image_id": number, "width": width, "height": height, "file_name": f"{name}.jpg"}
            content = {"image": image, "annotations": [_sa1b_mask(mask) for mask in of_image]}
            path = root / "annotations" / "val" / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
        return root

    return write


def _sa1b_mask(mask: Mask) -> dict[str, Any]:
    rows, columns = np.nonzero(mask)
    x, y = (columns.min(), rows.min()) if len(rows) else (0, 0)
    w, h = (columns.max() - x, rows.max() - y) if len(rows) else (0, 0)
    points = [[float(columns[0]), float(rows[0])]] if len(rows) else []
    box = [float(value) for value in (x, y, w, h)]
    return {"segmentation": encode(mask), "bbox": box, "area": int(mask.sum()), "point_coords": points}


@pytest.fixture
def write_coco() -> WriteTruth:
    """Writes the same as COCO's val2017, object i of each image a "thing i"; returns the folder."""

    def write(root: Path, masks: dict[str, list[Mask]]) -> Path:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, (name, of_image) in enumerate(masks.items()):
            height, width = of_image[0].shape
            noise(root / "val2017" / f"{name}.jpg", height, width)
            images.append({"id": number, "file_name": f"{name}.jpg", "width": width, "height": height})
            for place, mask in enumerate(of_image):
                # The box is COCO's, one pixel larger than SA-1B's.
                x, y, w, h = _sa1b_mask(mask)["bbox"]
                annotations.append(
                    {
                        "id": len(annotations),
                        "image_id": number,
                        "category_id": place,
                        "segmentation": encode(mask),
                        "area": float(mask.sum()),
                        "bbox": [x, y, w + 1, h + 1],
                        "iscrowd": 0,
                    }
                )
        most = max(map(len, masks.values()))
        categories = [{"id": place, "name": f"thing {place}"} for place in range(most)]
        path = root / "annotations" / "instances_val2017.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
        return root

    return write


@pytest.fixture
def two_images() -> dict[str, list[Mask]]:
    """A wide and a tall image with two boxes each, and an empty mask."""
    wide, tall = np.zeros((3, 40, 80), dtype=bool), np.zeros((2, 96, 48), dtype=bool)
    wide[0, 10:30, 20:60] = wide[1, 4:12, 4:12] = True
    tall[0, 30:90, 6:42] = tall[1, 6:18, 12:30] = True
    return {"sa_1": list(wide), "sa_2": list(tall)}


@pytest.fixture
def write_store() -> Callable[..., Path]:
    """Writes a store of noise with the records of the ids given; by default it fits `box_decoder`."""

    def write(
        directory: Path, ids: list[str], hflip: float = 0.0, shape: tuple[int, int, int] = (CHANNELS, CELLS, SIDE)
    ) -> Path:
        directory.mkdir(parents=True)
        channels, cells, side = shape
        manifest = Manifest(
            embed_dim=channels,
            embed_size=cells,
            preprocessing=Preprocessing(image_size=side, resize="square"),
            augmentation=Augmentation(hflip=hflip),
        )
        (directory / "manifest.json").write_text(manifest.model_dump_json())
        grids = np.random.default_rng(0).normal(size=(len(ids), channels, cells, cells)).astype("<f2")
        (directory / "rank0-values.bin").write_bytes(b"".join(bytes(4) + grid.tobytes() for grid in grids))
        (directory / "rank0-keys.txt").write_text("".join(f"{key}\n" for key in ids))
        return directory

    return write


@pytest.fixture
def student_path(tmp_path: Path) -> Path:
    """The checkpoint of a training on such a store, with its curves beside it."""
    architecture = StudentArchitecture("efficientvit_b0", embed_dim=CHANNELS, embed_size=CELLS, image_size=SIDE)
    torch.manual_seed(0)
    preprocessing = Preprocessing(image_size=SIDE, resize="square")
    content = {
        "model": Student(architecture).state_dict(),
        "architecture": asdict(architecture),
        "preprocessing": preprocessing.model_dump(),
    }
    folder = tmp_path / "training"
    folder.mkdir()
    torch.save(content, folder / "ckpt_epoch_1.pth")
    epochs = [{"epoch": epoch, "train/loss": 1.0 - epoch / 2, "val/loss": 1.5 - epoch / 2} for epoch in range(2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    return folder / "ckpt_epoch_1.pth"
