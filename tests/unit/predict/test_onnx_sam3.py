"""Prompting an ONNX directory: the answers and files of the PyTorch path, without PyTorch."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

import efficientsam3
from efficientsam3.cli import main
from efficientsam3.data.images import read_rgb
from efficientsam3.data.preprocess import Preprocessing, normalise, resize_image
from efficientsam3.export.onnx.run import export_onnx
from efficientsam3.merge.run import merge
from efficientsam3.predict.onnx_sam3 import OnnxSAM3, to_input
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.efficientsam3 import EfficientSAM3
from efficientsam3.sam3.text import build_tokenizer, tokenize

Make = Callable[..., Path]
PROMPTS: list[dict[str, Any]] = [
    {"text": "a red sock"},
    {"boxes": [(10, 10, 60, 60)]},
    {"text": "dog", "boxes": [(10, 10, 60, 60), (70, 10, 100, 50)], "box_labels": [1, 0]},
    {"points": [(30, 20), (80, 80)], "labels": [1, 0], "candidates": True},
    {"object_box": (10, 10, 80, 80)},
    {"points": [(30, 20)], "object_box": (10, 10, 80, 80)},
]


@pytest.fixture(scope="module")
def models(merged: Path, exported: Path) -> tuple[EfficientSAM3, OnnxSAM3]:
    return EfficientSAM3.from_pretrained(merged, "cpu"), efficientsam3.OnnxSAM3.from_pretrained(exported)


@pytest.fixture(scope="module")
def image_path(photographs_path: Path) -> Path:
    return sorted(photographs_path.rglob("*.jpg"))[0]


@pytest.mark.parametrize("prompt", PROMPTS, ids="-".join)
def test_answers_are_pytorchs(prompt: dict[str, Any], models: tuple[EfficientSAM3, OnnxSAM3], image_path: Path) -> None:
    extra = {} if "points" in prompt or "object_box" in prompt else {"threshold": 0.0}
    expected, found = (model.encode(image_path).segment(**prompt, **extra) for model in models)
    assert len(found) == len(expected) > 0
    masks = expected.masks.numpy()
    assert (masks & found.masks).sum() / (masks | found.masks).sum() >= 0.999
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.5 if "candidates" in prompt else 0.01)


def test_an_earlier_answer_s_prompts_do_not_linger(models: tuple[EfficientSAM3, OnnxSAM3], image_path: Path) -> None:
    image = models[1].encode(image_path)
    first = image.segment("a red sock", threshold=0.0)
    image.segment(boxes=[(10, 10, 60, 60)], threshold=0.0)
    image.segment(points=[(30, 20)])
    again = image.segment("a red sock", threshold=0.0)
    assert (first.scores == again.scores).all()


def test_a_graph_runs_once_per_image(exported: Path, image_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = OnnxSAM3.from_pretrained(exported)
    ran: list[str] = []
    run = model.run
    monkeypatch.setattr(model, "run", lambda name, inputs: ran.append(name) or run(name, inputs))  # type: ignore[func-returns-value]
    image = model.encode(image_path)
    for _ in range(2):
        image.segment(points=[(30, 20)])
    assert ran == ["image_encoder", "interactive_neck", "interactive", "interactive"]
    for _ in range(2):
        image.segment("dog")
    assert ran[4:] == ["detector_neck", "text_encoder", "detector", "detector"]


@pytest.mark.parametrize("resize", ["square", "pad"])
@pytest.mark.parametrize("side", [224, 1008])
def test_pixels_are_at_most_a_grey_level_from_pytorchs(resize: Any, side: int, photographs_path: Path) -> None:
    preprocessing = Preprocessing(image_size=side, resize=resize, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    for path in sorted(photographs_path.rglob("*.jpg"))[:3]:
        pixels = read_rgb(path)
        resized, content = resize_image(pixels, preprocessing)
        expected = normalise(resized[None], torch.tensor([content]), preprocessing).numpy()
        found = to_input(pixels.permute(1, 2, 0).numpy(), preprocessing)
        assert found.dtype == np.float32
        level = 1.0001 / 255 / np.array(preprocessing.std).reshape(3, 1, 1)
        assert (np.abs(found - expected) <= level).all()
        assert (found[:, :, content[0] :] == 0).all()


def test_tokens_are_pytorchs(models: tuple[EfficientSAM3, OnnxSAM3], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(models[1], "run", lambda _, inputs: given.append(inputs) or {"text_features": None})  # type: ignore[func-returns-value]
    tokenizer = build_tokenizer()
    for phrase in ("a cup of coffee", "visual", "Héllo wörld's 123!!", "don't  red-and-white", "狗 🐶"):
        models[1]._encode_text(phrase)
        expected = tokenize(tokenizer, phrase)
        assert (given[-1]["input_ids"] == expected[0].numpy()).all()
        assert (given[-1]["text_mask"] == expected[1].numpy()).all()
        assert given[-1]["input_ids"].dtype == np.int64


def test_the_command_writes_what_pytorch_writes(
    merged: Path, exported: Path, image_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(image_path), "--text", "dog", "--text", "cat", "--box", "10", "10", "60", "60", "--negative-box"]
    arguments += ["70", "10", "90", "50", "--point", "30", "20", "--negative-point", "80", "80", "--threshold", "0"]
    records = {}
    for name, model in (("torch", merged), ("onnx", exported)):
        assert main(["predict", str(model), *arguments, "--out", str(tmp_path / name), "--device", "cpu"]) == 0
        records[name] = json.loads((tmp_path / name / f"{image_path.stem}.json").read_text())
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in records]
    assert names[0] == names[1]
    expected, found = records["torch"], records["onnx"]
    assert expected.keys() == found.keys()
    assert (expected["image"], expected["height"]) == (found["image"], found["height"])
    for ours, theirs in zip(found["objects"], expected["objects"], strict=True):
        assert ours.keys() == theirs.keys()
        assert (ours["prompt"], ours["mask"]) == (theirs["prompt"], theirs["mask"])
        assert coco_mask.iou([ours["segmentation"]], [theirs["segmentation"]], [0])[
            0, 0
        ] >= 0.999 or not coco_mask.area(theirs["segmentation"])
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
    overlays = [np.asarray(Image.open(tmp_path / name / f"{image_path.stem}_overlay.png")) for name in records]
    assert (overlays[0] != overlays[1]).mean() < 0.01


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_holes_are_filled_unless_the_command_says_not_to(
    kind: str, merged: Path, exported: Path, image_path: Path, tmp_path: Path
) -> None:
    model = {"torch": merged, "onnx": exported}[kind]
    counts = {}
    for area in (None, 20, 0):
        option = [] if area is None else ["--max-hole-area", str(area)]
        prompts = ["--point", "5", "5", "--text", "dog", "--threshold", "0"]
        assert main(["predict", str(model), str(image_path), *prompts, *option, "--out", str(tmp_path)]) == 0
        objects = json.loads((tmp_path / f"{image_path.stem}.json").read_text())["objects"]
        counts[area] = [int(coco_mask.area(found["segmentation"])) for found in objects]
    *texts, points = map(list, zip(*counts.values(), strict=True))
    assert points[0] > points[1] > points[2]
    assert all(len(set(areas)) == 1 for areas in texts)  # the detector's masks are left alone


WITHOUT = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "transformers", "timm", "safetensors"}:
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Refuse())
from efficientsam3.cli import main
code = main(sys.argv[1:])
assert not {"torch", "transformers", "timm"} & set(sys.modules)
sys.exit(code)
"""


def test_nothing_of_pytorch_is_needed(exported: Path, image_path: Path, tmp_path: Path) -> None:
    command = ["predict", str(exported), str(image_path), "--text", "dog", "--point", "30", "20", "--threshold", "0"]
    command = [sys.executable, "-c", WITHOUT, *command, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads((tmp_path / f"{image_path.stem}.json").read_text())["objects"]) == 21


def test_parts_left_out(tiny_sam3_path: Path, student_checkpoint: Make, image_path: Path, tmp_path: Path) -> None:
    answers = {}
    for part, prompt in (("image", {"boxes": [(10, 10, 60, 60)], "threshold": 0.0}), ("tracker", {"points": [(1, 1)]})):
        merge(student_checkpoint(), tiny_sam3_path, tmp_path / f"{part}.pt", keep=[part])
        export_onnx(tmp_path / f"{part}.pt", tmp_path / part)
        image = OnnxSAM3.from_pretrained(tmp_path / part).encode(image_path)
        whole = EfficientSAM3.from_pretrained(tmp_path / f"{part}.pt", "cpu").encode(image_path)
        np.testing.assert_allclose(image.segment(**prompt).scores, whole.segment(**prompt).scores, atol=1e-5)
        answers[part] = image
    with pytest.raises(UserError, match="has no text encoder"):
        answers["image"].segment("dog")
    with pytest.raises(UserError, match="has no tracker"):
        answers["image"].segment(points=[(1, 1)])
    with pytest.raises(UserError, match="has no detector"):
        answers["tracker"].segment(boxes=[(1, 1, 2, 2)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cuda"], "ONNX graphs run on the CPU"),
        (["--variant", "int8"], "has no int8 image encoder"),
        (["--text", " "], "text prompt is empty"),
    ],
)
def test_the_command_refuses_in_one_sentence(
    options: list[str], message: str, exported: Path, image_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(exported), str(image_path), "--text", "dog", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_variant_belongs_to_onnx(merged: Path, image_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(merged), str(image_path), "--text", "dog", "--variant", "fp16"]) == 2
    assert "belongs to what export-onnx wrote" in capsys.readouterr().err


def test_a_missing_graph_is_named(exported: Path, image_path: Path, tmp_path: Path) -> None:
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "interactive.onnx").unlink()
    image = OnnxSAM3.from_pretrained(tmp_path).encode(image_path)
    with pytest.raises(UserError, match=r"interactive\.onnx is not a file: export the model again"):
        image.segment(points=[(1, 1)])
