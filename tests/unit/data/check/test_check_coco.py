"""Listing and checking COCO's layout: the instances file lists the images, and is checked against them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efficientsam3.data import listing_cache
from efficientsam3.data.check.files import Kind
from efficientsam3.data.check.run import check_dataset
from efficientsam3.data.layouts import list_images
from efficientsam3.runtime.errors import UserError


@pytest.fixture
def dataset(tmp_path: Path, photographs_path: Path) -> Path:
    """Six training and three validation images in COCO's layout, with their masks as COCO writes them."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        shutil.copytree(photographs_path / "images" / split, root / f"{split}2017")
        files = sorted((photographs_path / "annotations" / split).glob("*.json"))
        records = [json.loads(path.read_text()) for path in files]
        instances_file(root, split).write_text(json.dumps(instances(records)))
    return root


def instances_file(root: Path, split: str) -> Path:
    return root / f"annotations/instances_{split}2017.json"


def instances(records: list[dict[str, Any]]) -> dict[str, Any]:
    images = [{"id": number, **record["image"]} for number, record in enumerate(records)]
    masks = []
    for number, record in enumerate(records):
        for mask in record["annotations"]:
            x, y, width, height = mask["bbox"]
            entry = {"id": len(masks), "image_id": number, "category_id": 1, "iscrowd": 1, "area": mask["area"]}
            box = [x, y, width + 1, height + 1]
            masks.append({**entry, "segmentation": mask["segmentation"], "bbox": box})
    return {"images": images, "annotations": masks, "categories": [{"id": 1, "name": "thing"}]}


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_whole_dataset_has_no_problems(dataset: Path, workers: int) -> None:
    report = check_dataset(dataset, "coco", workers=workers)
    assert report.problems == []
    assert report.images == {"train": 6, "val": 3}
    assert report.annotated == 9
    written = [json.loads(instances_file(dataset, split).read_text()) for split in ("train", "val")]
    assert report.masks == sum(len(record["annotations"]) for record in written) > 9


def test_every_kind_of_problem_is_found(dataset: Path) -> None:
    train = instances_file(dataset, "train")

    def damage(record: dict[str, Any]) -> None:
        record["annotations"][0].update(area=1)
        record["annotations"][1].update(image_id=999)
        record["images"][1].update(width=1)

    change(train, damage)
    (dataset / "train2017/sa_1.jpg").unlink()
    shutil.copy(dataset / "val2017/sa_7.jpg", dataset / "val2017/other.jpg")
    report = check_dataset(dataset, "coco", fix=True)
    files = {kind: {p.file.relative_to(dataset) for p in report.problems if p.kind is kind} for kind in report.counts()}
    relative = train.relative_to(dataset)
    assert files == {
        Kind.MASK: {relative},  # the area, and the masks that are larger than the width
        Kind.SIZE: {relative},
        Kind.MISSING: {Path("train2017/sa_1.jpg")},
        Kind.UNNAMED: {Path("val2017/other.jpg")},
        Kind.ID: {relative},
    }
    assert report.quarantined == []


def test_the_instances_file_lists_the_images(dataset: Path) -> None:
    change(instances_file(dataset, "train"), lambda record: record["images"].pop(0))
    (dataset / "train2017/sa_2.jpg").unlink()
    listing = list_images(dataset, "train", "coco")
    assert [listing.path(index).name for index in range(len(listing))] == [f"sa_{number}.jpg" for number in range(2, 7)]
    assert listing.root == dataset / "train2017"


def test_a_folder_without_instances_file_lists_what_it_has(dataset: Path) -> None:
    instances_file(dataset, "train").unlink()
    (dataset / "train2017/sa_2.jpg").unlink()
    assert len(list_images(dataset, "train", "coco")) == 5
    report = check_dataset(dataset, "coco")
    assert (report.problems, report.images, report.annotated) == ([], {"train": 5, "val": 3}, 3)


def test_instances_of_a_split_without_folder_are_not_listed(dataset: Path) -> None:
    shutil.rmtree(dataset / "train2017")
    assert len(list_images(dataset, "train", "coco")) == 0
    assert check_dataset(dataset, "coco").problems == []


def test_a_broken_instances_file_is_refused(dataset: Path) -> None:
    instances_file(dataset, "val").write_text("{")
    for refused in (lambda: list_images(dataset, "val", "coco"), lambda: check_dataset(dataset, "coco")):
        with pytest.raises(UserError, match=r"instances_val2017\.json is not in COCO's format"):
            refused()


def test_the_cached_names_follow_the_file(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(dataset / "cache"))
    monkeypatch.setattr(listing_cache, "SMALLEST", 1)
    monkeypatch.setattr(listing_cache, "_SETTLED_NS", 0)
    assert len(list_images(dataset, "train", "coco")) == 6
    assert list((dataset / "cache").rglob("*.npz"))
    assert len(list_images(dataset, "train", "coco")) == 6
    change(instances_file(dataset, "train"), lambda record: record["images"].pop(0))
    assert len(list_images(dataset, "train", "coco")) == 5
