"""One merged model of full size as ONNX graphs: the same answers on ten photographs, by the real commands."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from efficientsam3.data.preprocess import SAM3_PREPROCESSING
from efficientsam3.models.student import Student, StudentArchitecture

SHARED = Path(__file__).parents[3] / "shared"
PHOTOGRAPHS = SHARED / "real_photos" / "images" / "val"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(not (SHARED / "sam3_reference").is_dir(), reason="needs shared/ beside the checkout"),
]
PROMPTS = {
    "words and points": ["--text", "bird", "--point", 200, 150, "--negative-point", 20, 20],
    "boxes": ["--box", 50, 50, 250, 250, "--object-box", 60, 60, 200, 220],
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
    done = run("efficientsam3", "export-onnx", merged, "--out", out, *variants, "--pictures", photographs, timeout=7200)
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


@pytest.mark.parametrize("prompts", PROMPTS)
def test_predictions_agree_on_ten_photographs(
    prompts: str, merged: Path, exported: Path, photographs: Path, tmp_path: Path, run
) -> None:
    arguments = [photographs, *PROMPTS[prompts], "--threshold", 0, "--device", "cpu"]
    for name, model in (("torch", merged), ("onnx", exported)):
        run("efficientsam3", "predict", model, *arguments, "--out", tmp_path / name, timeout=3600)
    worst = {"iou": 1.0, "score": 0.0, "box": 0.0}
    for record in sorted((tmp_path / "torch").glob("*.json")):
        expected, found = (json.loads(path.read_text()) for path in (record, tmp_path / "onnx" / record.name))
        assert len(expected["objects"]) == len(found["objects"]) > 0
        for theirs, ours in zip(expected["objects"], match(expected["objects"], found["objects"]), strict=True):
            assert ours["prompt"] == theirs["prompt"]
            if coco_mask.area(theirs["segmentation"]):
                iou = float(coco_mask.iou([ours["segmentation"]], [theirs["segmentation"]], [0])[0, 0])
                worst["iou"] = min(worst["iou"], iou)
            worst["score"] = max(worst["score"], abs(ours["score"] - theirs["score"]))
            worst["box"] = max(worst["box"], float(np.abs(np.subtract(ours["bbox"], theirs["bbox"])).max()))
    print(prompts, worst)
    assert worst["iou"] >= 0.99
    assert worst["score"] <= 1e-3


def match(expected: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Objects are ranked by score, and equal scores come in any order: to each expected one the found one like it."""
    left = list(found)
    matched = []
    for theirs in expected:
        same = [ours for ours in left if ours["prompt"] == theirs["prompt"]]
        nearest = min(same, key=lambda ours: float(np.abs(np.subtract(ours["bbox"], theirs["bbox"])).sum()))
        left.remove(nearest)
        matched.append(nearest)
    return matched
