"""Prompting: coordinates, the detector and the tracker, missing parts, and what is written."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

import efficientsam3
from efficientsam3.cli import main
from efficientsam3.data.annotations.encode import encode_rle
from efficientsam3.data.find import find_images
from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.merge.run import merge
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3 import torch_calls
from efficientsam3.sam3.efficientsam3 import EfficientSAM3
from efficientsam3.sam3.geometry import Placement, boxes_of_masks
from efficientsam3.sam3.text import build_tokenizer, tokenize

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def merged(tiny_sam3_path: Path, student_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("merged") / "whole.pt"
    merge(student_checkpoint(), tiny_sam3_path, path)
    return path


@pytest.fixture(scope="module")
def model(merged: Path) -> EfficientSAM3:
    return efficientsam3.EfficientSAM3.from_pretrained(merged, device="cpu")


@pytest.fixture(scope="module")
def image_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ramp = np.linspace(0, 255, 120 * 90 * 3).reshape(90, 120, 3).astype(np.uint8)
    path = tmp_path_factory.mktemp("images") / "street.png"
    Image.fromarray(ramp).save(path)
    return path


def test_shapes_and_order_of_answers(model: EfficientSAM3, image_path: Path) -> None:
    image = model.encode(image_path)
    for answer in (
        image.segment("bicycle", threshold=0.0),
        image.segment(boxes=[(10, 10, 60, 60), (70, 10, 100, 50)], box_labels=[1, 0], threshold=0.0),
        image.segment(points=[(30, 20)], labels=[1], candidates=True),
        image.segment(points=[(30, 20), (60, 60)], labels=[1, 0], object_box=(10, 10, 80, 80)),
    ):
        assert len(answer) > 0
        assert answer.masks.shape == (len(answer), 90, 120)
        assert answer.masks.dtype == torch.bool
        assert answer.boxes.shape == (len(answer), 4)
        assert (answer.scores[:-1] >= answer.scores[1:]).all()
        assert ((answer.scores >= 0) & (answer.scores <= 1)).all()
        assert ((answer.boxes >= 0) & (answer.boxes <= torch.tensor([120, 90, 120, 90]))).all()


def test_a_threshold_keeps_the_better_ones(model: EfficientSAM3, image_path: Path) -> None:
    image = model.encode(image_path)
    everything = image.segment("bicycle", threshold=0.0)
    middle = float(everything.scores[len(everything) // 2])
    some = image.segment("bicycle", threshold=middle)
    assert len(some) == int((everything.scores > middle).sum())
    assert torch.equal(some.masks, everything.masks[: len(some)])
    assert image.segment("bicycle", threshold=1.0).masks.shape == (0, 90, 120)


def test_the_best_of_three_candidates_is_returned(model: EfficientSAM3, image_path: Path) -> None:
    image = model.encode(image_path)
    three = image.segment(points=[(30, 20)], candidates=True)
    best = image.segment(points=[(30, 20)])
    assert len(three) == 3
    assert len(best) == 1
    assert torch.equal(best.masks[0], three.masks[0])


def test_the_image_is_encoded_once_for_all_prompts(
    model: EfficientSAM3, image_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = model.encode(image_path)
    monkeypatch.setattr(model._models.encoder, "forward", None)
    monkeypatch.setattr(model.detector.vision_encoder, "forward", None)
    image.segment("dog")
    image.segment("cat")
    image.segment(points=[(1, 1)])


def test_every_form_of_image_gives_the_same_embedding(model: EfficientSAM3, image_path: Path) -> None:
    image = Image.open(image_path)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    expected = model.encode(image_path).embedding
    for form in (str(image_path), image, array, tensor):
        assert torch.equal(model.encode(form).embedding, expected)
    with pytest.raises(UserError, match="not RGB of 8 bits"):
        model.encode(torch.zeros(3, 9, 9))


def test_text_alone_gets_the_padding_box_that_metas_numbers_need(
    model: EfficientSAM3, image_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_boxes: list[torch.Tensor] = []
    forward = model.detector.geometry_encoder.forward

    def spies(*args: object, **kwargs: torch.Tensor) -> object:
        given_boxes.append(kwargs["box_mask"])
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.detector.geometry_encoder, "forward", spies)
    model.encode(image_path).segment("dog")
    assert [mask.tolist() for mask in given_boxes] == [[[False]]]


def test_no_memory_is_added_to_the_level_that_is_used(model: EfficientSAM3) -> None:
    embedding = torch.randn(1, 64, 16, 16)
    tracker = model.tracker
    levels, _ = tracker.vision_encoder.neck(embedding)
    coarse = torch_calls.tracker_features(tracker, embedding)[2]
    assert torch.equal(coarse, levels[2] + tracker.no_memory_embedding.reshape(1, -1, 1, 1))
    assert not torch.equal(coarse, levels[2])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({}, "Give either text and boxes"),
        ({"boxes": [(1, 1, 9, 9)], "labels": [0]}, "labels belongs to prompts of the other kind"),
        ({"points": [(1, 1)], "box_labels": [0]}, "box_labels belongs to prompts of the other kind"),
        ({"text": "dog", "points": [(1, 1)]}, "Give either text and boxes"),
        ({"text": " "}, "text prompt is empty"),
        ({"text": "very " * 40}, r"has 42 tokens, at most 32"),
        ({"points": [(500, 1)]}, r"point \[500, 1\] is not in the image of 120x90"),
        ({"boxes": [(60, 60, 10, 10)]}, "is empty"),
        ({"object_box": (0, 0, 10)}, "is not in the image"),
        ({"points": [(1, 1)], "labels": [2]}, r"labels \[2\]: give 1 or 0"),
        ({"boxes": [(1, 1, 2, 2)], "box_labels": [1, 1]}, "give 1 or 0 for each"),
    ],
)
def test_prompts_without_a_meaning(
    prompt: dict[str, object], message: str, model: EfficientSAM3, image_path: Path
) -> None:
    image = model.encode(image_path)
    with pytest.raises(UserError, match=message):
        image.segment(**prompt)  # type: ignore[arg-type]


def test_left_out_parts(
    merged: Path, model: EfficientSAM3, tiny_sam3_path: Path, student_checkpoint: Make, image_path: Path, tmp_path: Path
) -> None:
    box, pixels = [(10.0, 10.0, 60.0, 60.0)], image_path
    merge(student_checkpoint(), tiny_sam3_path, tmp_path / "image.pt", keep=["image"])
    slim = EfficientSAM3.from_pretrained(tmp_path / "image.pt", "cpu").encode(pixels)
    expected = model.encode(pixels).segment(boxes=box, threshold=0.0)
    found = slim.segment(boxes=box, threshold=0.0)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="without its text encoder"):
        slim.segment("dog")
    with pytest.raises(UserError, match="without its tracker"):
        slim.segment(points=[(1, 1)])
    merge(student_checkpoint(), tiny_sam3_path, tmp_path / "points.pt", keep=["tracker"])
    slim = EfficientSAM3.from_pretrained(tmp_path / "points.pt", "cpu").encode(pixels)
    whole = model.encode(pixels).segment(points=[(30, 20)])
    assert torch.equal(slim.segment(points=[(30, 20)]).masks, whole.masks)
    with pytest.raises(UserError, match="without its detector"):
        slim.segment(boxes=box)


def test_plain_sam3_goes_through_the_same_door(tiny_sam3_path: Path, image_path: Path) -> None:
    image = EfficientSAM3.from_pretrained(tiny_sam3_path, "cpu").encode(image_path)
    assert image.embedding.shape == (1, 64, 16, 16)
    assert len(image.segment("dog", threshold=0.0)) == 20


def test_a_file_merged_elsewhere_needs_no_metadata_at_sam3s_own_size(merged: Path, tmp_path: Path) -> None:
    (tmp_path / "bare.pt").write_bytes(merged.read_bytes())
    with pytest.raises(UserError, match=r"does not fit"):  # a student of 1008 pixels is assumed, this one is small
        EfficientSAM3.from_pretrained(tmp_path / "bare.pt", "cpu")
    (tmp_path / "bare.pt.json").write_text('{"bytes": 1}')
    with pytest.raises(UserError, match="whose size differs"):
        EfficientSAM3.from_pretrained(tmp_path / "bare.pt", "cpu")
    with pytest.raises(UserError, match="does not exist"):
        EfficientSAM3.from_pretrained(tmp_path / "absent.pt", "cpu")


SIZES = st.integers(20, 3000)


@given(SIZES, SIZES, st.sampled_from(["square", "pad"]), st.floats(0, 1), st.floats(0, 1))
def test_coordinates_go_there_and_back(height: int, width: int, resize: str, x: float, y: float) -> None:
    preprocessing = Preprocessing(image_size=1008, resize=resize)  # type: ignore[arg-type]
    placement = Placement.of(height, width, preprocessing)
    x0, y0 = x * (width - 2), y * (height - 2)
    box = [x0, y0, x0 + 2, y0 + 2]
    cx, cy, w, h = placement.boxes_to_input([box])[0].tolist()
    assert 0 <= cx <= 1.0001
    assert 0 <= cy <= 1.0001
    unit = np.array([[cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]], dtype=np.float32)
    np.testing.assert_allclose(placement.boxes_to_image(unit), [box], atol=0.02, rtol=1e-4)


def test_masks_of_padded_images_show_the_content_alone() -> None:
    placement = Placement((50, 100), (504, 1008), 1008)
    logits = torch.full((1, 288, 288), -1.0)
    logits[:, :144] = 1.0  # the upper half of the input is the image
    for masks in (placement.masks_to_image(logits.numpy()), torch_calls.masks_to_image(placement, logits)):
        assert masks[0, :48].all()
        assert masks.shape == (1, 50, 100)


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from(["square", "pad"]), st.integers(0, 9))
def test_masks_are_resized_alike_by_numpy_and_pytorch(height: int, width: int, resize: str, seed: int) -> None:
    preprocessing = Preprocessing(image_size=40, resize=resize)  # type: ignore[arg-type]
    placement = Placement.of(height, width, preprocessing)
    logits = torch.randn(2, 12, 12, generator=torch.Generator().manual_seed(seed))
    expected, found = torch_calls.masks_to_image(placement, logits).numpy(), placement.masks_to_image(logits.numpy())
    assert (expected != found).mean() <= 1 / 500 + 1 / expected.size  # a value of almost 0 may round to either side


def test_boxes_of_masks() -> None:
    masks = np.zeros((2, 10, 20), dtype=np.bool_)
    masks[0, 2:5, 3:9] = True
    assert boxes_of_masks(masks).tolist() == [[3, 2, 9, 5], [0, 0, 0, 0]]


def test_the_tokenizer_agrees_with_open_clips() -> None:
    from open_clip.tokenizer import SimpleTokenizer

    theirs, ours = SimpleTokenizer(context_length=32), build_tokenizer()
    for phrase in ("a cup of coffee", "visual", "Héllo wörld's 123!!", "don't  red-and-white", "狗 🐶"):
        ids, mask = tokenize(ours, phrase)
        count = int(mask.sum())
        assert ids[0, :count].tolist() == theirs(phrase)[0, :count].tolist()
        assert theirs(phrase)[0, count:].sum() == 0


@given(st.integers(1, 12), st.integers(1, 12), st.randoms(use_true_random=False))
def test_rle_is_cocos(height: int, width: int, random: object) -> None:
    mask = np.random.default_rng(random.randint(0, 999)).random((height, width)) > 0.5  # type: ignore[attr-defined]
    rle = encode_rle(mask)
    assert json.loads(json.dumps(rle)) == rle
    assert (coco_mask.decode(rle) == mask).all()


def test_the_command_writes_overlay_masks_and_json(
    merged: Path, image_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("street.png", "street.jpg", "other.png"):
        Image.open(image_path).save(tmp_path / "in" / name)
    (tmp_path / "in" / "broken.jpg").write_bytes((tmp_path / "in" / "street.jpg").read_bytes()[:300])
    arguments = ["--text", "dog", "--text", "cat", "--box", "10", "10", "60", "60", "--negative-box", "70", "10", "90"]
    arguments += ["50", "--point", "30", "20", "--negative-point", "80", "80", "--threshold", "0"]
    command = [
        "predict",
        str(merged),
        str(tmp_path / "in"),
        *arguments,
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "skipped" in output
    assert "broken.jpg" in output
    record = json.loads((tmp_path / "out" / "other.json").read_text())
    assert [sum(o["prompt"] == prompt for o in record["objects"]) for prompt in ("dog", "cat", "points")] == [20, 20, 1]
    assert (record["height"], record["width"]) == (90, 120)
    for found in record["objects"]:
        mask = np.asarray(Image.open(tmp_path / "out" / found["mask"])) > 0
        assert (coco_mask.decode(found["segmentation"]) == mask).all()
    overlay = np.asarray(Image.open(tmp_path / "out" / "other_overlay.png"))
    assert overlay.shape == (90, 120, 3)
    assert (overlay != np.asarray(Image.open(image_path))).any()
    assert (tmp_path / "out" / "street.png.json").is_file()  # two images of one stem
    assert (tmp_path / "out" / "street.jpg.json").is_file()
    # A second run that finds less leaves no mask of the first.
    assert main([*command[:3], "--point", "30", "20", "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("other_mask_*")) == ["other_mask_000.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "No prompt was given"),
        (["--negative-point", "1", "1"], "Only negative points"),
        (["--text", "dog", "--threshold", "7"], "--threshold 7.0 is not a probability"),
    ],
)
def test_the_command_refuses_in_one_sentence(
    arguments: list[str],
    message: str,
    merged: Path,
    image_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["predict", str(merged), str(image_path), *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_images_are_found_in_folders_and_by_globs(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_images([str(tmp_path)])] == ["a.PNG", "b.jpg"]
    assert [path.name for path in find_images([str(tmp_path / "*.jpg"), str(tmp_path / "b.jpg")])] == ["b.jpg"]
    with pytest.raises(UserError, match="No image matches"):
        find_images([str(tmp_path / "*.gif")])


def test_patterns_of_trees_leave_out_hidden_files_and_links_to_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jpg", "b/a.jpg", "b/c/a.jpg", "b/.hidden/a.jpg", "b/.a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b" / "circle").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert [str(path) for path in find_images(["**/*.jpg"])] == ["a.jpg", "b/a.jpg", "b/c/a.jpg"]
    assert [str(path) for path in find_images(["[ab]/**/*.jpg"])] == ["b/a.jpg", "b/c/a.jpg"]
    assert [str(path) for path in find_images(["b/**/c/**"])] == ["b/c/a.jpg"]
    assert find_images([f"{tmp_path}/b/**/*.jpg"]) == [tmp_path / "b/a.jpg", tmp_path / "b/c/a.jpg"]
