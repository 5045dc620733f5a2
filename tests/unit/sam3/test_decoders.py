from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
import torch

from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.decoders import OnnxDecoder, Sam3Decoder, load_decoder
from efficientsam3.sam3.efficientsam3 import EfficientSAM3
from efficientsam3.sam3.geometry import Placement
from efficientsam3.sam3.prompts import ObjectPrompt

CPU = torch.device("cpu")
SIZES = [(40, 80), (96, 48), (64, 64), (31, 200)]


def placement_of(size: tuple[int, int], resize: Literal["square", "pad"]) -> Placement:
    return Placement.of(*size, Preprocessing(image_size=64, resize=resize))


@pytest.mark.parametrize("resize", ["square", "pad"])
@pytest.mark.parametrize("size", SIZES)
def test_boxes_and_masks_go_to_the_input_and_back(
    box_decoder: Path, size: tuple[int, int], resize: Literal["square", "pad"]
) -> None:
    height, width = size
    box = (width // 4, height // 4, width * 3 // 4, height * 3 // 4)
    expected = torch.zeros(size, dtype=torch.bool)
    expected[box[1] : box[3], box[0] : box[2]] = True
    ask = OnnxDecoder(box_decoder).open(torch.zeros(1, 8, 4, 4), placement_of(size, resize))
    answer = ask(ObjectPrompt(box=box))
    assert answer.masks.shape == (1, *size)
    assert answer.scores.tolist() == [0.75]
    # Up to the cells of the decoder's grid at the box's edges.
    wrong = (answer.masks[0] ^ expected).nonzero()
    reach = torch.tensor([max(height, width) / 64] * 2) if resize == "pad" else torch.tensor([height / 64, width / 64])
    for row, column in wrong.tolist():
        edges = (
            min(abs(row + 0.5 - box[1]), abs(row + 0.5 - box[3])),
            min(abs(column + 0.5 - box[0]), abs(column + 0.5 - box[2])),
        )
        assert edges[0] <= reach[0] or edges[1] <= reach[1]
    assert (answer.masks[0] & expected).sum() / (answer.masks[0] | expected).sum() > 0.9


@pytest.mark.parametrize("resize", ["square", "pad"])
def test_points_go_to_the_input_and_back(box_decoder: Path, resize: Literal["square", "pad"]) -> None:
    ask = OnnxDecoder(box_decoder).open(torch.zeros(1, 8, 4, 4), placement_of((40, 80), resize))
    rows, columns = ask(ObjectPrompt(((60, 10),), (1,))).masks[0].nonzero().float().mean(0).tolist()
    assert (columns + 0.5, rows + 0.5) == pytest.approx((60, 10), abs=0.7)


def test_other_onnx_models_are_refused(tmp_path: Path, box_decoder: Path) -> None:
    model = onnx.load(box_decoder)
    model.graph.input[0].name = "pixels"
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(UserError, match="inputs"):
        load_decoder(tmp_path / "other.onnx", CPU)
    with pytest.raises(UserError, match="not a file"):
        load_decoder(tmp_path / "none.onnx", CPU)
    with pytest.raises(UserError, match="does not exist"):
        load_decoder(tmp_path / "none.pt", CPU)


def test_sam3_s_decoder_alone_answers_as_the_whole_model(tiny_sam3_path: Path) -> None:
    pixels = torch.randint(0, 256, (3, 50, 90), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    whole = EfficientSAM3.from_pretrained(tiny_sam3_path, "cpu")
    image = whole.encode(pixels)
    decoder, unfilling = Sam3Decoder(tiny_sam3_path, CPU), Sam3Decoder(tiny_sam3_path, CPU, max_hole_area=0)
    assert (decoder.embed_dim, decoder.embed_size, decoder.preprocessing.image_size) == (64, 16, 224)
    ask, filled = decoder.open(image.embedding, Placement((50, 90), (224, 224), 224)), 0
    for prompt, expected in (
        (ObjectPrompt(box=(10, 10, 60, 40)), image.segment(object_box=(10, 10, 60, 40))),
        (ObjectPrompt(((30, 20),), (1,)), image.segment(points=[(30, 20)])),
    ):
        answer = ask(prompt)
        assert torch.equal(answer.masks, expected.masks)
        assert np.allclose(answer.scores.clamp(0, 1), expected.scores)
        unfilled = unfilling.open(image.embedding, image._placement)(prompt)
        assert torch.equal(unfilled.masks, image.ask(prompt, max_hole_area=0).masks)
        filled += int((answer.masks & ~unfilled.masks).sum())
    assert filled > 0
