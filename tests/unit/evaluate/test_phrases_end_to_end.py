"""Text by the command: files of COCO, LVIS and SA-Co, with a small SAM3."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from efficientsam3.cli import main
from efficientsam3.evaluate.masks.ground_truth import open_ground_truth
from efficientsam3.runtime.errors import UserError


@pytest.fixture
def coco(tmp_path: Path, write_coco, two_images) -> Path:
    return write_coco(tmp_path / "coco", two_images)


def saco(coco: Path, name: str, phrases: dict[str, list[int]], missing: bool = False) -> Path:
    """COCO's two images with phrases: of each, which of the image's masks have it."""
    value = json.loads((coco / "annotations/instances_val2017.json").read_text())
    images: list[dict[str, Any]] = []
    masks: list[dict[str, Any]] = []
    for image in value["images"]:
        own = [entry for entry in value["annotations"] if entry["image_id"] == image["id"]]
        for phrase, numbers in phrases.items():
            pair = {**image, "id": len(images), "text_input": phrase, "is_instance_exhaustive": 1}
            images.append(pair)
            masks += [{"image_id": pair["id"], "segmentation": own[number]["segmentation"]} for number in numbers]
    path = coco / name
    path.write_text(json.dumps({"images": images[2 * missing :], "annotations": masks, "categories": []}))
    return path


def evaluate(*arguments: object) -> int:
    return main(["evaluate", *map(str, arguments), "--device", "cpu"])


def test_phrases_of_coco_with_negatives(tmp_path: Path, coco: Path, tiny_sam3_path: Path, capsys) -> None:
    out = tmp_path / "out"
    models = f"teacher={tiny_sam3_path}", f"copy={tiny_sam3_path}"
    assert evaluate(*models, "--data", coco, "--prompt", "text", "--negatives", 1, "--out", out) == 0
    printed = capsys.readouterr().out
    # "thing 0" to "thing 2" are the categories; each image has two, and one of them an empty mask besides.
    assert "Text: " in printed
    results = json.loads((out / "results.json").read_text())
    teacher, copy = results["text"]
    assert teacher["positives"] == 4
    assert teacher | {"model": ""} == copy | {"model": ""}
    assert copy["agreement"] in (None, 1.0)
    asked = {(row["image_id"], row["phrase"], row["objects"] > 0) for row in results["phrases"]}
    assert {phrase for _, phrase, there in asked if there} == {"thing 0", "thing 1"}
    report = (out / "report.html").read_text()
    assert "<h2>Text</h2>" in report
    assert "predicted presence" in report


def test_saco_s_pairs_by_several_annotators(tmp_path: Path, coco: Path, tiny_sam3_path: Path, capsys) -> None:
    first = saco(coco, "gold_a.json", {"a box": [0, 1], "a whale": []})
    other = saco(coco, "gold_b.json", {"a box": [0], "a whale": []})
    truth = open_ground_truth(first, images=coco / "val2017", annotators=[other])
    assert truth.ids.tolist() == [b"sa_1", b"sa_2"]
    image = truth.load(0)
    assert [(phrase.text, len(phrase.masks), len(phrase.others)) for phrase in image.phrases] == [
        ("a whale", 0, 1),
        ("a box", 2, 1),
    ]
    assert len(image.phrases[1].others[0]) == 1
    assert [thing.category for thing in image.objects] == ["a box", "a box"]
    assert [phrase.exhaustive for phrase in image.phrases] == [True, True]
    unsure = json.loads(other.read_text())
    unsure["images"][0]["is_instance_exhaustive"] = 0
    doubtful = coco / "gold_c.json"
    doubtful.write_text(json.dumps(unsure))
    image = open_ground_truth(first, images=coco / "val2017", annotators=[other, doubtful]).load(0)
    assert [phrase.exhaustive for phrase in image.phrases] == [True, False], "one annotator was not"
    options = ["--data", first, "--images", coco / "val2017", "--out", tmp_path / "out", "--annotators", other]
    assert evaluate(tiny_sam3_path, *options, "--prompt", "text", "box") == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["text"][0]["pairs"], results["text"][0]["positives"]) == (4, 2)
    assert [row["objects"] for row in results["summary"]] == [4, 4]
    capsys.readouterr()
    assert evaluate(tiny_sam3_path, "--data", first, "--out", tmp_path / "out") == 2
    assert "name their folder with --images" in capsys.readouterr().err


def test_files_of_other_images_and_kinds_are_refused(coco: Path) -> None:
    first = saco(coco, "gold_a.json", {"a box": [0]})
    fewer = saco(coco, "gold_b.json", {"a box": []}, missing=True)
    with pytest.raises(UserError, match="do not annotate the same images"):
        open_ground_truth(first, images=coco / "val2017", annotators=[fewer])
    instances = coco / "annotations/instances_val2017.json"
    for data in (instances, coco):
        with pytest.raises(UserError, match="--annotators has no effect"):
            open_ground_truth(data, annotators=[first])
    (coco / "folder.json").mkdir()
    for name in ("none.json", "folder.json"):
        for data, others in ((coco / name, []), (first, [coco / name])):
            with pytest.raises(UserError, match=f"{name} cannot be read"):
                open_ground_truth(data, images=coco / "val2017", annotators=others)


def test_lvis_is_read_with_coco_s_folders(tmp_path: Path, coco: Path) -> None:
    value = json.loads((coco / "annotations/instances_val2017.json").read_text())
    for image in value["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/val2017/{image.pop('file_name')}"
        image |= {"neg_category_ids": [1], "not_exhaustive_category_ids": [0]}
    for entry in value["annotations"]:
        del entry["iscrowd"]
    value["categories"] = [{"id": number, "name": f"big_thing_(of {number})_{number}"} for number in range(3)]
    path = coco / "annotations" / "lvis_v1_val.json"
    path.write_text(json.dumps(value))
    for folder in (None, coco, coco / "val2017"):
        truth = open_ground_truth(path, images=folder)
        image = truth.load(0)
        assert image.path.is_file()
        assert image.image_id == "sa_1"
        assert [(phrase.text, phrase.exhaustive) for phrase in image.phrases] == [
            ("big thing 0", False),
            ("big thing 1", True),
        ]
        assert image.absent == ("big thing 1",)
    moved = tmp_path / "elsewhere" / "lvis.json"
    moved.parent.mkdir()
    moved.write_text(path.read_text())
    with pytest.raises(UserError, match="are not beside it"):
        open_ground_truth(moved)


def test_a_broken_mask_of_an_annotator_is_named(coco: Path) -> None:
    first = saco(coco, "gold_a.json", {"a box": [0]})
    value = json.loads(first.read_text())
    size = value["annotations"][0]["segmentation"]["size"]
    empty = coco_mask.encode(np.zeros(size, dtype=np.uint8, order="F"))["counts"].decode()
    value["annotations"][0]["segmentation"] = {"size": size, "counts": empty[:-1]}
    broken = coco / "gold_b.json"
    broken.write_text(json.dumps(value))
    with pytest.raises(UserError, match="mask of image sa_1 is broken"):
        open_ground_truth(first, images=coco / "val2017", annotators=[broken]).load(0)
