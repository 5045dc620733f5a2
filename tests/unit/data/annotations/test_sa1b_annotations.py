"""SA-1B's annotation files: what is right passes, what is wrong is named, and no input crashes the reader."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from efficientsam3.data.annotations import sa1b as annotations
from efficientsam3.data.annotations.sa1b import BrokenAnnotationError, mask_problems, read_annotation


def record() -> dict[str, Any]:
    """One 20 x 30 image with a mask of rows 5 to 9 and columns 10 to 19."""
    mask = np.zeros((20, 30), dtype=np.uint8, order="F")
    mask[5:10, 10:20] = 1
    counts = coco.encode(mask)["counts"].decode()
    return {
        "image": {"image_id": 7, "width": 30, "height": 20, "file_name": "sa_7.jpg"},
        "annotations": [
            {
                "id": 70,
                "segmentation": {"size": [20, 30], "counts": counts},
                "bbox": [10.0, 5.0, 9.0, 4.0],
                "area": 50,
                "point_coords": [[12.5, 6.25]],
                "predicted_iou": 0.9,
                "stability_score": 0.95,
                "crop_box": [0, 0, 30, 20],
            }
        ],
    }


def write(tmp_path: Path, value: Any) -> Path:
    path = tmp_path / "sa_7.json"
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return path


def problems(tmp_path: Path, **changes: Any) -> list[str]:
    value = record()
    value["annotations"][0].update(changes)
    return mask_problems(read_annotation(write(tmp_path, value)))


def test_a_right_file_has_no_problems(tmp_path: Path) -> None:
    annotation = read_annotation(write(tmp_path, record()))
    assert annotation.image.width == 30
    assert annotation.annotations[0].rle.mask()[5:10, 10:20].all()
    assert mask_problems(annotation) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"area": 51}, "area 51 where the mask has 50"),
        ({"bbox": [10, 5, 10, 5]}, "COCO's convention"),
        ({"bbox": [10, 5, 15, 4]}, "box is not the mask's"),
        ({"point_coords": [[30, 3]]}, "point (30, 3) outside"),
        ({"point_coords": [[3, -0.5]]}, "outside"),
        ({"segmentation": {"size": [20, 31], "counts": "PT"}}, "not the image's"),
        ({"segmentation": {"size": [20, 30], "counts": "5"}}, "broken mask"),
        ({"segmentation": {"size": [20, 30], "counts": "hb0"}}, "empty mask"),
    ],
)
def test_each_problem_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    found = problems(tmp_path, **changes)
    assert any(words in problem for problem in found), found
    assert all(problem.startswith("mask 0: ") for problem in found)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not in SA-1B's format"),
        (b'{"image": {', "not in SA-1B's format"),
        (b"[]", "not in SA-1B's format"),
        (b'{"image": {"image_id": 1, "width": 0, "height": 1, "file_name": ""}, "annotations": []}', "image.width"),
        (b'{"annotations": []}', "image: Field required"),
        (b"\xff\xfe", "not in SA-1B's format"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(BrokenAnnotationError, match=words) as caught:
        read_annotation(write(tmp_path, content))
    assert "sa_7.json" in str(caught.value)


def test_missing_and_oversized_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BrokenAnnotationError, match="cannot be read"):
        read_annotation(tmp_path / "absent.json")
    path = write(tmp_path, record())
    monkeypatch.setattr(annotations, "MAX_ANNOTATION_BYTES", 10)
    with pytest.raises(BrokenAnnotationError, match="more than the 10 that are read"):
        read_annotation(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.sampled_from(
        ["image", "width", "annotations", "segmentation", "size", "counts", "bbox", "area", "points"]
    ),
    value=json_values,
)
def test_any_value_anywhere_is_read_or_refused(tmp_path: Path, place: str, value: Any) -> None:
    whole = record()
    mask = whole["annotations"][0]
    match place:
        case "image" | "annotations":
            whole[place] = value
        case "width":
            whole["image"]["width"] = value
        case "size" | "counts":
            mask["segmentation"][place] = value
        case "points":
            mask["point_coords"] = value
        case _:
            mask[place] = value
    _read_all(write(tmp_path, whole))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 400), damage=st.binary(max_size=8), end=st.integers(0, 600))
def test_damaged_bytes_are_read_or_refused(tmp_path: Path, position: int, damage: bytes, end: int) -> None:
    data = bytearray(json.dumps(record()).encode())
    data[position : position + len(damage)] = damage
    _read_all(write(tmp_path, bytes(data[:end])))


def _read_all(path: Path) -> None:
    try:
        annotation = read_annotation(path)
    except BrokenAnnotationError:
        return
    assert all(isinstance(problem, str) for problem in mask_problems(annotation))
