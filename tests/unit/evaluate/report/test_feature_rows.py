from pathlib import Path

import pytest
import torch

from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.evaluate.masks.encoders import ModuleEncoder
from efficientsam3.evaluate.masks.ground_truth import open_ground_truth
from efficientsam3.evaluate.masks.segmenters import EncoderWithDecoder
from efficientsam3.evaluate.report.feature_rows import feature_rows
from efficientsam3.sam3.decoders import OnnxDecoder


def test_cells_of_padding_are_left_out_and_differing_cells_have_no_cosine(
    tmp_path: Path, write_sa1b, two_images, box_decoder
) -> None:
    truth = open_ground_truth(write_sa1b(tmp_path, two_images))
    noise = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    decoder = OnnxDecoder(box_decoder)

    def model(name: str, resize: str, sign: int) -> EncoderWithDecoder:
        preprocessing = Preprocessing(image_size=64, resize=resize)  # type: ignore[arg-type]
        return EncoderWithDecoder(
            name, ModuleEncoder(lambda _: sign * noise, preprocessing, torch.device("cpu")), decoder
        )

    models = [model("first", "pad", 1), model("opposite", "pad", -1), model("squashed", "square", 1)]
    wide, tall = feature_rows(models, [truth.load(0), truth.load(1)])
    assert [features.colours.shape for features in wide.features] == [(2, 4, 3), (2, 4, 3), (4, 4, 3)]
    assert [features.colours.shape for features in tall.features] == [(4, 2, 3), (4, 2, 3), (4, 4, 3)]
    assert [features.cosine for features in wide.features] == [None, pytest.approx(-1), None]
    assert wide.pixels.shape == (40, 80, 3)
