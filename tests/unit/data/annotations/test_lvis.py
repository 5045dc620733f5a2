"""LVIS's files: read as published, and no input crashes the reader."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from efficientsam3.data.annotations.lvis import Lvis, phrase_of
from efficientsam3.data.annotations.sa1b import BrokenAnnotationError


def record() -> dict[str, Any]:
    """Version 1: images of two of COCO's folders, without file names and crowds."""
    image = {"width": 30, "height": 20, "license": 1, "date_captured": "2013", "flickr_url": "http://x/1.jpg"}
    return {
        "info": {},
        "images": [
            {
                "id": 397133,
                "coco_url": "http://images.cocodataset.org/val2017/000000397133.jpg",
                "neg_category_ids": [2],
                "not_exhaustive_category_ids": [3],
                **image,
            },
            {
                "id": 9,
                "coco_url": "http://images.cocodataset.org/train2017/000000000009.jpg",
                "neg_category_ids": [],
                "not_exhaustive_category_ids": [],
                **image,
            },
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 397133,
                "category_id": 3,
                "segmentation": [[10, 5, 20, 5, 20, 10, 10, 10]],
                "area": 50.0,
                "bbox": [10.0, 5.0, 10.0, 5.0],
            }
        ],
        "categories": [
            {"id": 1, "name": "alarm_clock", "synset": "alarm_clock.n.01", "synonyms": ["alarm_clock"]},
            {"id": 2, "name": "bow_(weapon)", "synset": "bow.n.04", "frequency": "r"},
            {"id": 3, "name": "dog", "synset": "dog.n.01", "frequency": "f"},
        ],
    }


def write(tmp_path: Path, value: Any) -> Path:
    path = tmp_path / "lvis_v1_val.json"
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return path


def test_a_file_of_version_1(tmp_path: Path) -> None:
    first, second = Lvis(write(tmp_path, record())).images
    assert (first.folder, first.instances.image.file_name) == ("val2017", "000000397133.jpg")
    assert (second.folder, second.instances.image.file_name) == ("train2017", "000000000009.jpg")
    assert (first.absent, first.incomplete) == (("bow",), {"dog"})
    (mask,) = first.instances.annotation().annotations
    assert mask.rle.area == 50


def test_a_file_of_version_0_5_names_its_images(tmp_path: Path) -> None:
    value = record()
    value["images"][0]["file_name"] = "COCO_val2014_000000397133.jpg"
    first = Lvis(write(tmp_path, value)).images[0]
    assert (first.folder, first.instances.image.file_name) == (None, "COCO_val2014_000000397133.jpg")


def test_names_as_words() -> None:
    names = {"alarm_clock": "alarm clock", "bow_(weapon)": "bow", "(x)": "(x)", "dog": "dog"}
    assert {name: phrase_of(name) for name in names} == names


@pytest.mark.parametrize(
    ("table", "change", "words"),
    [
        ("images", {"coco_url": None}, "image 397133: file_name"),
        ("images", {"coco_url": "http://x/.."}, "image 397133: file_name"),
        ("images", {"coco_url": "http://x/../1.jpg"}, "image 397133: coco_url names no folder"),
        ("images", {"id": 9}, "annotations.0: no image has its image_id"),
        ("images", {"neg_category_ids": [5]}, "image 397133 names a category"),
        ("images", {"neg_category_ids": "2"}, "images.0.neg_category_ids"),
        ("images", {"coco_url": record()["images"][1]["coco_url"]}, "two images have one file name"),
        ("annotations", {"category_id": 5}, "annotations.0: no category has its category_id"),
        ("annotations", {"segmentation": 1}, "annotations.0.segmentation"),
        ("categories", {"id": 2}, "two images or categories have one id"),
    ],
)
def test_wrong_entries_are_refused_by_field(tmp_path: Path, table: str, change: dict[str, Any], words: str) -> None:
    value = record()
    value[table][0].update(change)
    with pytest.raises(BrokenAnnotationError, match=words) as caught:
        Lvis(write(tmp_path, value))
    assert "lvis_v1_val.json" in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_anywhere_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    whole = record()
    table = data.draw(st.sampled_from(["images", "annotations", "categories"]))
    key = data.draw(st.sampled_from([*whole[table][0], "all"]))
    value = data.draw(json_values)
    if key == "all":
        whole[table] = value
    else:
        whole[table][0][key] = value
    try:
        images = Lvis(write(tmp_path, whole)).images
    except BrokenAnnotationError:
        return
    for image in images:
        try:
            image.instances.annotation()
        except BrokenAnnotationError:
            continue
