import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efficientsam3.data.annotations.sa1b import BrokenAnnotationError
from efficientsam3.evaluate.masks.ground_truth import Selection, choose_images, choose_objects, open_ground_truth
from efficientsam3.runtime.errors import UserError


def change_instances(root: Path, **changes: Any) -> None:
    """Overwrite fields of the first annotation."""
    path = root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0] |= changes
    path.write_text(json.dumps(content))


def test_both_formats_give_the_same_objects(tmp_path: Path, write_sa1b, write_coco, two_images) -> None:
    two_images["sa_1"].insert(1, np.zeros((40, 80), dtype=bool))  # nobody can ask for an empty mask
    sa1b = open_ground_truth(write_sa1b(tmp_path / "sa1b", two_images))
    coco = open_ground_truth(write_coco(tmp_path / "coco", two_images))
    assert sa1b.ids.tolist() == coco.ids.tolist() == [b"sa_1", b"sa_2"]
    for index in range(2):
        one, other = sa1b.load(index), coco.load(index)
        assert (one.image_id, one.size) == (other.image_id, other.size)
        assert [thing.number for thing in one.objects] == ([0, 2] if index == 0 else [0, 1])
        for left, right in zip(one.objects, other.objects, strict=True):
            assert left.number == right.number
            assert left.box == right.box
            assert left.rle.area == right.rle.area
            assert left.prompt("center") == right.prompt("center")
    assert coco.has_categories
    assert not sa1b.has_categories
    assert [thing.category for thing in coco.load(0).objects] == ["thing 0", "thing 2"]
    assert [thing.category for thing in sa1b.load(0).objects] == [None, None]


def test_an_instances_file_finds_its_images_or_is_told(tmp_path: Path, write_coco, two_images) -> None:
    root = write_coco(tmp_path / "coco", two_images)
    path = root / "annotations" / "instances_val2017.json"
    assert open_ground_truth(path).load(1).path == root / "val2017" / "sa_2.jpg"
    (root / "val2017").rename(root / "elsewhere")
    with pytest.raises(UserError, match="--images"):
        open_ground_truth(path)
    assert open_ground_truth(path, images=root / "elsewhere").load(1).path.is_file()


def test_crowds_are_left_out(tmp_path: Path, write_coco, two_images) -> None:
    root = write_coco(tmp_path, two_images)
    change_instances(root, iscrowd=1)
    assert [thing.number for thing in open_ground_truth(root).load(0).objects] == [1]


def test_broken_masks_are_named(tmp_path: Path, write_sa1b, two_images) -> None:
    root = write_sa1b(tmp_path, two_images)
    path = root / "annotations" / "val" / "sa_2.json"
    content = json.loads(path.read_text())
    content["annotations"][1]["segmentation"]["counts"] = "0"
    path.write_text(json.dumps(content))
    truth = open_ground_truth(root)
    assert len(truth.load(0).objects) == 2
    with pytest.raises(BrokenAnnotationError, match=r"sa_2\.json has a broken mask 1"):
        truth.load(1)
    content["annotations"][1]["segmentation"] = {"size": [2, 2], "counts": "04"}
    path.write_text(json.dumps(content))
    with pytest.raises(BrokenAnnotationError, match="mask 1 of 2 x 2 for image sa_2 of 96 x 48"):
        truth.load(1)


def test_what_is_not_annotated_is_refused(tmp_path: Path, write_coco, two_images) -> None:
    root = write_coco(tmp_path / "coco", two_images)
    (root / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(UserError, match="no annotations of its split val in the layout of sa1b, coco"):
        open_ground_truth(root)
    with pytest.raises(UserError, match="not a folder"):
        open_ground_truth(tmp_path / "nowhere")
    (tmp_path / "sa1b" / "images").mkdir(parents=True)
    (tmp_path / "sa1b" / "annotations" / "val").mkdir(parents=True)
    with pytest.raises(UserError, match="no images in its split val"):
        open_ground_truth(tmp_path / "sa1b")


def test_the_choice_of_images_is_the_seed_s() -> None:
    assert choose_images(5, Selection()).tolist() == [0, 1, 2, 3, 4]
    assert choose_images(5, Selection(max_images=9)).tolist() == [0, 1, 2, 3, 4]
    chosen = choose_images(1000, Selection(max_images=10, seed=1))
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert len(chosen) == 10
    assert chosen.tolist() == choose_images(1000, Selection(max_images=10, seed=1)).tolist()
    assert chosen.tolist() != choose_images(1000, Selection(max_images=10, seed=2)).tolist()


def test_the_choice_of_objects_is_the_seed_s_and_by_area(tmp_path: Path, write_sa1b) -> None:
    masks = np.zeros((30, 8, 40), dtype=bool)
    for number, mask in enumerate(masks):
        mask[0, : number + 1] = True
    truth = open_ground_truth(write_sa1b(tmp_path, {"sa_1": list(masks), "sa_2": list(masks)}))

    def numbers(index: int = 0, **selection: int) -> list[int]:
        return [thing.number for thing in choose_objects(truth.load(index), Selection(**selection))]

    assert numbers() == list(range(30))
    assert numbers(min_area=26) == [25, 26, 27, 28, 29]
    chosen = numbers(max_objects=5)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 5
    assert chosen == numbers(max_objects=5)
    assert chosen != numbers(max_objects=5, seed=1)
    assert chosen != numbers(1, max_objects=5), "each image has a choice of its own"
    assert min(numbers(max_objects=5, min_area=20)) >= 19
