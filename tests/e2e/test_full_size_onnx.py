"""One merged model of full size as ONNX graphs: the same answers on ten photographs, by PyTorch and by ONNX Runtime."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from efficientsam3 import EfficientSAM3, OnnxSAM3
from efficientsam3.data.preprocess import SAM3_PREPROCESSING
from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.sam3.geometry import mask_iou
from efficientsam3.sam3.promptable import Segmentation

SHARED = Path(__file__).parents[3] / "shared"
PHOTOGRAPHS = SHARED / "real_photos" / "images" / "val"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(not (SHARED / "sam3_reference").is_dir(), reason="needs shared/ beside the checkout"),
]
PROMPTS: dict[str, dict[str, Any]] = {
    "a word": {"text": "bird", "threshold": 0},
    "a word and an example": {"text": "person", "boxes": [(50, 50, 250, 250)], "threshold": 0},
    "points": {"points": [(200, 150), (20, 20)], "labels": [1, 0]},
    "a box around the object": {"object_box": (60, 60, 200, 220)},
}


@pytest.fixture(scope="module")
def merged(tmp_path_factory, run) -> Path:
    """A stand-in for Meta's file with every key, shape and dtype of it, and in it a student of random weights."""
    folder = tmp_path_factory.mktemp("full")
    run("python", SHARED / "sam3_reference" / "make_sam3_like.py", folder / "sam3.pt", timeout=1200)
    torch.manual_seed(0)
    student = Student(StudentArchitecture("efficientvit_b0", head="fpn")).train()
    with torch.no_grad():
        student(torch.randn(2, 3, 256, 256))  # moves BatchNorm's statistics
    described = {"architecture": asdict(student.architecture), "preprocessing": SAM3_PREPROCESSING.model_dump()}
    torch.save({"model": student.state_dict(), "epoch": 0, **described}, folder / "student.pth")
    command = ["efficientsam3", "merge", "--student-ckpt", folder / "student.pth", "--sam3-ckpt", folder / "sam3.pt"]
    run(*command, "--output", folder / "merged.pt", timeout=2400)
    (folder / "sam3.pt").unlink()
    return folder / "merged.pt"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ten")
    for path in sorted(PHOTOGRAPHS.glob("*.jpg"))[:10]:
        (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def exported(merged: Path, photographs: Path, run) -> Path:
    out = merged.parent / "onnx"
    variants = ["--variants", "fp16", "int8", "--calibrate", photographs]
    done = run("efficientsam3", "export-onnx", merged, "--out", out, *variants, "--images", photographs, timeout=7200)
    print(done.stdout)
    return out


def test_every_graph_agrees(exported: Path) -> None:
    manifest = json.loads((exported / "model.json").read_text())
    measured = {name: graph["measured"] for name, graph in manifest["graphs"].items()}
    assert len(manifest["pictures"]) == 10
    assert len(measured) == 6
    for name in ("image_encoder", "text_encoder", "detector_neck", "interactive_neck"):
        assert measured[name]["relative_error"] <= 1e-4
    for name in ("detector", "interactive"):
        assert measured[name]["mask_iou"] >= 0.999
    assert manifest["variants"]["fp16"]["measured"]["cosine"] > 0.9999
    assert manifest["variants"]["int8"]["measured"]["cosine"] > 0.5  # of random weights; finite, and not of nothing


def test_predictions_agree_on_ten_photographs(merged: Path, exported: Path, photographs: Path) -> None:
    torch_model, onnx_model = EfficientSAM3.from_pretrained(merged, device="cpu"), OnnxSAM3.from_pretrained(exported)
    worst: dict[str, dict[str, float]] = {}
    for photograph in sorted(photographs.iterdir()):
        expected_image, found_image = torch_model.encode(photograph), onnx_model.encode(photograph)
        for name, prompt in PROMPTS.items():
            expected, found = expected_image.segment(**prompt), found_image.segment(**prompt)
            row = compared(expected, found)
            before = worst.setdefault(name, row)
            worst[name] = {key: (min if key == "iou" else max)(before[key], value) for key, value in row.items()}
    for name, row in worst.items():
        print(name, row)
        assert row["iou"] >= 0.99
        assert row["score"] <= 1e-3


def compared(expected: Segmentation[torch.Tensor], found: Segmentation[Any]) -> dict[str, float]:
    """IoU of all masks as one, and the largest difference of scores and of boxes in pixels.

    Objects are ranked by score, and those with equal scores come in any order: to each expected one the found one with
    the nearest box.
    """
    boxes, scores, masks = (value.numpy() for value in (expected.boxes, expected.scores, expected.masks))
    assert len(scores) == len(found.scores) > 0
    distances = np.abs(boxes[:, None] - found.boxes[None]).max(2) + np.abs(scores[:, None] - found.scores[None])
    rows, order = linear_sum_assignment(distances)
    assert (rows == np.arange(len(scores))).all()
    return {
        "iou": mask_iou(masks, found.masks[order]),
        "score": float(np.abs(scores - found.scores[order]).max()),
        "box": float(np.abs(boxes - found.boxes[order]).max()),
    }
