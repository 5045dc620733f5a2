"""A mask decoder in ONNX that is simple enough to know its answers."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE, CELLS, CHANNELS = 64, 4, 8  # pixels of the encoder's input, cells, channels


def box_model() -> onnx.ModelProto:
    """SAM's inputs and outputs; its second mask, of higher score, fills the box, or the 8 pixels around a point.

    Other labels than a box's 2 and 3, or a point's 1 and the padding's -1, make the mask empty.
    """
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
