"""SA-Co's files of phrases: read as published, and no input crashes the readers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from efficientsam3.data.annotations.sa1b import BrokenAnnotationError
from efficientsam3.data.annotations.saco import ImagePhrases, PhrasePair, VideoPhrases

HEIGHT, WIDTH = 20, 30


def square(x: int) -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[5:10, x : x + 5] = 1
    return {"size": [HEIGHT, WIDTH], "counts": coco_mask.encode(mask)["counts"].decode()}


def pairs() -> dict[str, Any]:
    """Keys and values as in the published description, "Annotation format"."""
    common = {"width": WIDTH, "height": HEIGHT, "queried_category": "0", "is_pixel_exhaustive": 1}
    mask = {"source": "manual", "area": 0.04, "bbox": [0.1, 0.25, 0.2, 0.25], "category_id": 1, "iscrowd": 0}
    return {
        "info": {},
        "images": [
            {"id": 10, "file_name": "1/a.jpeg", "text_input": "chili", "is_instance_exhaustive": 1, **common},
            {"id": 11, "file_name": "1/a.jpeg", "text_input": "the fish ball", "is_instance_exhaustive": 1, **common},
            {"id": 12, "file_name": "2/18:50_b.jpg", "text_input": "chili", "is_instance_exhaustive": 0, **common},
        ],
        "annotations": [
            {"id": 1, "image_id": 10, "segmentation": square(3), **mask},
            {"id": 2, "image_id": 10, "segmentation": square(15), **mask},
            {"id": 3, "image_id": 12, "segmentation": square(0), **mask, "iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "object"}],
    }


def videos() -> dict[str, Any]:
    """As in VEval's description and its toy file."""
    video = {"id": 0, "video_name": "v", "height": HEIGHT, "width": WIDTH, "length": 2}
    masklet = {"bboxes": [[3.0, 5.0, 5.0, 5.0], None], "areas": [25.0, None], "iscrowd": 0, "height": HEIGHT}
    return {
        "info": {"version": "v1"},
        "videos": [{**video, "file_names": ["v/00000.jpg", "v/00004.jpg"]}],
        "annotations": [
            {
                "id": 5,
                "video_id": 0,
                "category_id": 7,
                "noun_phrase": "a braid",
                "segmentations": [square(3), None],
                "width": WIDTH,
                **masklet,
            }
        ],
        "categories": [{"id": 7, "name": "a braid"}, {"id": 8, "name": "thick gold chain"}],
        "video_np_pairs": [
            {"id": 1, "video_id": 0, "category_id": 7, "noun_phrase": "a braid", "num_masklets": 1},
            {"id": 2, "video_id": 0, "category_id": 8, "noun_phrase": "thick gold chain", "num_masklets": 0},
        ],
    }


def write(tmp_path: Path, value: Any) -> Path:
    path = tmp_path / "gold.json"
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return path


def test_pairs_are_grouped_by_their_image(tmp_path: Path) -> None:
    file = ImagePhrases(write(tmp_path, pairs()))
    assert file.names == ["1/a.jpeg", "2/18:50_b.jpg"]
    assert file.phrases == ["chili", "the fish ball"]
    first, second = file.image(0), file.image(1)
    assert (first.file_name, first.height, first.width) == ("1/a.jpeg", HEIGHT, WIDTH)
    assert [(pair.text, pair.exhaustive, len(pair.masks)) for pair in first.pairs] == [
        ("chili", True, 2),
        ("the fish ball", True, 0),
    ]
    assert first.pairs[0].masks[1].counts == square(15)["counts"]
    assert second.pairs == (PhrasePair("chili", False, ()),), "a mask of many objects is none"


def test_a_crowd_makes_a_pair_not_exhaustive_and_a_phrase_given_twice_is_left_out(tmp_path: Path) -> None:
    value = pairs()
    value["annotations"][0]["iscrowd"] = 1
    value["images"][1]["text_input"] = "chili"
    file = ImagePhrases(write(tmp_path, value))
    assert [(pair.text, pair.exhaustive, len(pair.masks)) for pair in file.image(0).pairs] == [("chili", False, 1)]
    assert "pair 11: 1/a.jpeg has its phrase twice" in file.left_out[0]


def test_frames_of_videos_are_images(tmp_path: Path) -> None:
    file = VideoPhrases(write(tmp_path, videos()))
    assert file.names == ["v/00000.jpg", "v/00004.jpg"]
    shown = [[(pair.text, len(pair.masks), pair.exhaustive) for pair in file.image(frame).pairs] for frame in (0, 1)]
    assert shown == [
        [("a braid", 1, True), ("thick gold chain", 0, True)],
        [("a braid", 0, True), ("thick gold chain", 0, True)],
    ]


@pytest.mark.parametrize(
    ("table", "change", "words"),
    [
        ("images", {"id": 11}, "two pairs have one id"),
        ("images", {"file_name": "../a.jpg"}, "images.0.file_name"),
        ("images", {"file_name": "/a.jpg"}, "images.0.file_name"),
        ("images", {"file_name": "a.txt"}, "images.0.file_name"),
        ("images", {"text_input": ""}, "images.0.text_input"),
        ("images", {"width": WIDTH + 1}, "give it different sizes"),
        ("images", {"is_instance_exhaustive": 2}, "images.0.is_instance_exhaustive"),
        ("annotations", {"image_id": 99}, "annotations.0.image_id: no pair has the id 99"),
        ("annotations", {"segmentation": {"size": [1]}}, "annotations.0.segmentation"),
    ],
)
def test_wrong_pairs_are_refused_by_field(tmp_path: Path, table: str, change: dict[str, Any], words: str) -> None:
    value = pairs()
    value[table][0].update(change)
    with pytest.raises(BrokenAnnotationError, match=words) as caught:
        ImagePhrases(write(tmp_path, value))
    assert "gold.json" in str(caught.value)


@pytest.mark.parametrize(
    ("table", "change", "words"),
    [
        ("annotations", {"video_id": 3}, "annotations.0.video_id: no video has the id 3"),
        ("video_np_pairs", {"video_id": 3}, "video_np_pairs.0.video_id: no video has the id 3"),
        ("annotations", {"segmentations": [None]}, "annotations.0.segmentations: 1 for 2 frames"),
        ("videos", {"file_names": ["v/0.jpg", "v/0.jpg"]}, "two frames have one file name"),
        ("videos", {"file_names": ["v/0.jpg", ".."]}, "videos.0.file_names.1"),
    ],
)
def test_wrong_videos_are_refused_by_field(tmp_path: Path, table: str, change: dict[str, Any], words: str) -> None:
    value = videos()
    value[table][0].update(change)
    with pytest.raises(BrokenAnnotationError, match=words):
        VideoPhrases(write(tmp_path, value))


def test_missing_files_are_refused(tmp_path: Path) -> None:
    for kind in (ImagePhrases, VideoPhrases):
        with pytest.raises(BrokenAnnotationError, match="cannot be read"):
            kind(tmp_path / "none.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_value_anywhere_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([ImagePhrases, VideoPhrases]))
    whole = pairs() if kind is ImagePhrases else videos()
    table = data.draw(st.sampled_from([key for key, entries in whole.items() if isinstance(entries, list)]))
    key = data.draw(st.sampled_from([*whole[table][0], "all"]))
    value = data.draw(json_values)
    if key == "all":
        whole[table] = value
    else:
        whole[table][0][key] = value
    try:
        file = kind(write(tmp_path, whole))
    except BrokenAnnotationError:
        return
    for index in range(len(file.names)):
        assert file.image(index).file_name == file.names[index]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 1200), damage=st.binary(max_size=8), end=st.integers(0, 1500))
def test_damaged_bytes_are_read_or_refused(tmp_path: Path, position: int, damage: bytes, end: int) -> None:
    content = bytearray(json.dumps(pairs()).encode())
    content[position : position + len(damage)] = damage
    try:
        ImagePhrases(write(tmp_path, bytes(content[:end])))
    except BrokenAnnotationError:
        return
