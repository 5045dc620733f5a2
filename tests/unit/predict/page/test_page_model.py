"""The page's `Model`, PyTorch and ONNX Runtime make the same mask of the same logits; the graphs' answers are given."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.export.ports import TRACKER_LEVELS
from efficientsam3.predict.onnx_sam3 import OnnxEncodedImage
from efficientsam3.sam3 import efficientsam3 as by_torch
from efficientsam3.sam3.geometry import Floats, Placement
from unit.predict.page.node import PAGE, run

SIDE = 64  # of the encoder's input
SCORES = [0.2, 0.9, 0.4]
# The graphs answer what they are given; a file is a data: URL of one byte.
_TRACK = """
import { readFileSync } from "node:fs";
const given = JSON.parse(readFileSync(0, "utf8"));
const { Model } = await import(given.page + "/model.js");
class Tensor { constructor(type, data, dims) { Object.assign(this, { type, data, dims }); } }
const answers = {
  e: { embedding: 0 },
  n: { level: 0 },
  i: {
    iou_scores: new Tensor("float32", Float32Array.from(given.scores), [1, 3]),
    mask_logits: new Tensor("float32", Float32Array.from(given.logits), [1, 3, ...given.shape]),
  },
};
const create = async ([letter]) => ({ run: async () => answers[String.fromCharCode(letter)] });
const graph = (file) => ({ file, bytes: 1, outputs: [{ name: "level" }] });
const graphs = { image_encoder: graph("e"), interactive_neck: graph("n"), interactive: graph("i") };
const manifest = { preprocessing: given.preprocessing, graphs, variants: {} };
const how = { provider: "wasm", variant: "fp32", say() {} };
const model = new Model({ Tensor, InferenceSession: { create } }, "data:,", manifest, how);
await model.encode(given.image, [given.image.height, given.image.width]);
const found = [];
for (const maxHoleArea of given.areas) {
  const [{ score, box, mask }] = await model.track({ points: [[1, 1]], labels: [1], box: null, maxHoleArea });
  found.push({ score, box, mask: Array.from(mask) });
}
console.log(JSON.stringify(found));
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, whose files Node reads as modules."""
    node = tmp_path_factory.mktemp("node") / "page"
    shutil.copytree(PAGE, node)
    (node / "package.json").write_text('{"type": "module"}')
    return node


def _track_by_page(page: Path, **given: Any) -> Any:
    return run(_TRACK, page=page.as_uri(), scores=SCORES, **given)


def _logits() -> Floats:
    """(3, 64, 64): three objects with holes of many sizes, in the middle and at the border."""
    rng = np.random.default_rng(3)
    logits = rng.normal(4, 1, (3, 64, 64))
    for y, x, radius in [(9, 9, 1), (20, 30, 3), (44, 44, 5), (44, 12, 9.5), (0, 40, 6), (63, 63, 4), (30, 50, 0.5)]:
        distance = np.hypot(*(np.indices((64, 64)) - np.array([y, x]).reshape(2, 1, 1)))
        logits[:, distance <= radius] *= -1
    return logits.astype(np.float32)


@pytest.mark.parametrize(("size", "resize"), [((50, 75), "square"), ((50, 75), "pad"), ((90, 40), "pad")])
def test_all_three_make_one_mask_of_the_same_logits(
    size: tuple[int, int], resize: Any, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, areas = _logits(), [0, 9, 256]
    preprocessing = Preprocessing(image_size=SIDE, resize=resize)
    placement = Placement.of(*size, preprocessing)
    answer = {"iou_scores": np.float32([SCORES]), "mask_logits": logits[None]}
    graphs: Any = SimpleNamespace(
        run=lambda name, inputs: answer if name == "interactive" else dict.fromkeys(TRACKER_LEVELS)
    )
    onnx = OnnxEncodedImage(graphs, placement, {"embedding": np.zeros(1)})
    model: Any = SimpleNamespace(tracker=None)
    image = by_torch.EncodedImage(model, placement, torch.zeros(1))
    monkeypatch.setattr(by_torch, "tracker_features", lambda *_: [])
    monkeypatch.setattr(by_torch, "track_object", lambda *_: (torch.from_numpy(logits), torch.tensor(SCORES)))
    pixels = {"data": [0] * (4 * size[0] * size[1]), "width": size[1], "height": size[0]}
    shown = _track_by_page(
        page,
        logits=logits.ravel().tolist(),
        shape=logits.shape[1:],
        image=pixels,
        preprocessing=preprocessing.model_dump(),
        areas=areas,
    )
    objects = []
    for area, found in zip(areas, shown, strict=True):
        expected, ours = (each.segment(points=[(1, 1)], max_hole_area=area) for each in (image, onnx))
        np.testing.assert_array_equal(np.array(found["mask"], bool).reshape(size), ours.masks[0])
        np.testing.assert_array_equal(expected.masks.numpy(), ours.masks)
        np.testing.assert_allclose(found["box"], ours.boxes[0])
        assert found["score"] == pytest.approx(0.9) == ours.scores[0] == float(expected.scores[0])
        objects.append(int(ours.masks.sum()))
    assert objects[0] < objects[1] < objects[2] < size[0] * size[1]
    assert (onnx.segment(points=[(1, 1)]).masks == ours.masks).all()  # 256 is the default
    assert (answer["mask_logits"][0] == _logits()).all()  # the logits stay as they are
