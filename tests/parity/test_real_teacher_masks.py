"""A real SAM-style encoder and decoder on real photographs, where they lie beside the checkout."""

from pathlib import Path

import numpy as np
import pytest
import torch

from efficientsam3.evaluate.masks.request import EvaluationRequest
from efficientsam3.evaluate.run import evaluate_masks
from efficientsam3.models.onnx_session import open_onnx
from efficientsam3.sam3.decoders import OnnxDecoder
from efficientsam3.sam3.geometry import Placement
from efficientsam3.sam3.prompts import ObjectPrompt

SHARED = Path(__file__).parents[2].parent / "shared"


@pytest.fixture(scope="module")
def decoder_path() -> Path:
    """SAM's decoder."""
    path = SHARED / "real_teacher" / "sam.onnx"
    if not path.is_file():
        pytest.skip("shared/real_teacher with a real encoder and decoder is not beside this checkout")
    return path


@pytest.mark.parametrize("size", [(321, 481), (640, 427), (1500, 2250)])
def test_masks_resized_here_are_the_decoder_s_own(decoder_path: Path, size: tuple[int, int]) -> None:
    decoder = OnnxDecoder(decoder_path)
    embedding = torch.zeros(1, 256, 64, 64)  # which this decoder makes smooth masks of
    placement = Placement.of(*size, decoder.preprocessing)
    height, width = size
    # As SAM's ResizeLongestSide.apply_coords: by the rounded size, each axis on its own.
    scale = np.array(placement.content[::-1], dtype=np.float32) / np.array(size[::-1], dtype=np.float32)
    box = (width * 0.2, height * 0.3, width * 0.7, height * 0.9)
    mask = decoder.open(embedding, placement)(ObjectPrompt(box=box)).masks[0]
    inputs = {
        "image_embeddings": embedding.numpy(),
        "point_coords": np.array(box, dtype=np.float32).reshape(1, 2, 2) * scale,
        "point_labels": np.array([[2, 3]], dtype=np.float32),
        "mask_input": np.zeros((1, 1, 256, 256), dtype=np.float32),
        "has_mask_input": np.zeros(1, dtype=np.float32),
        "orig_im_size": np.array(size, dtype=np.float32),
    }
    own = torch.from_numpy(open_onnx(decoder_path, "", "").run(["masks"], inputs)[0][0, 0] > 0)
    assert 0 < own.sum() < own.numel()
    assert torch.equal(mask, own)


@pytest.mark.slow
def test_the_encoder_s_masks_are_as_good_as_known(decoder_path: Path, tmp_path: Path) -> None:
    encoder, photographs = SHARED / "real_teacher" / "encoder.onnx", SHARED / "real_photos"
    if not photographs.is_dir():
        pytest.skip("shared/real_photos is not beside this checkout")
    request = EvaluationRequest(
        models=[f"teacher={encoder}", "random"],
        data=photographs,
        prompt=["box"],
        decoder=decoder_path,
        out=tmp_path,
        min_area=1024,
        max_images=8,
        max_objects=3,
        device="cpu",
    )
    teacher, noise = evaluate_masks(request).summaries
    # Known of 399 objects of all sizes: 0.68 and 0.09; of 138 of at least 1024 pixels in other photographs, 0.69.
    assert teacher.miou is not None
    assert noise.miou is not None
    assert teacher.miou > 0.6
    assert noise.miou < 0.2
