"""COCO's instances files: all kinds of masks are read, what is wrong is named, and no input crashes the reader."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from efficientsam3.data.annotations import coco
from efficientsam3.data.annotations.coco import InstanceMask, load_instances, load_usable_instances, read_instances
from efficientsam3.data.annotations.sa1b import BrokenAnnotationError, ImageAnnotation
from efficientsam3.data.check.coco_problems import instance_problems

HEIGHT, WIDTH = 20, 30


def square() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Rows 5 to 9 and columns 10 to 19."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[5:10, 10:20] = 1
    return mask


def runs() -> list[int]:
    return [10 * 20 + 5, *[5, 15] * 9, 5, 10 * 20 + 10]


def shapes() -> list[Any]:
    """The square as polygon, run lengths, and compressed run lengths."""
    size = [HEIGHT, WIDTH]
    compressed = coco_mask.encode(square())["counts"].decode()
    return [
        [[10, 5, 20, 5, 20, 10, 10, 10]],
        {"size": size, "counts": runs()},
        {"size": size, "counts": compressed},
    ]


def record() -> dict[str, Any]:
    """Two images; the first has the square three times over."""
    return {
        "info": {"year": 2017},
        "images": [
            {"id": 7, "width": WIDTH, "height": HEIGHT, "file_name": "7.jpg", "license": 1},
            {"id": 3, "width": 9, "height": 8, "file_name": "3.jpg"},
        ],
        "annotations": [
            {
                "id": 70 + number,
                "image_id": 7,
                "category_id": 18,
                "segmentation": shape,
                "bbox": [10, 5, 10, 5],
                "area": 50,
                "iscrowd": int(number > 0),
            }
            for number, shape in enumerate(shapes())
        ],
        "categories": [{"id": 18, "name": "dog", "supercategory": "animal"}],
    }


def write(tmp_path: Path, value: Any) -> Path:
    path = tmp_path / "instances_val2017.json"
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return path


def read(tmp_path: Path, value: Any) -> list[ImageAnnotation]:
    return list(read_instances(write(tmp_path, value)))


def problems(tmp_path: Path, number: int, **changes: Any) -> list[str]:
    value = record()
    value["annotations"][number].update(changes)
    return [problem for image in load_instances(write(tmp_path, value)).images for problem in instance_problems(image)]


def test_all_three_kinds_of_masks_are_the_same_mask(tmp_path: Path) -> None:
    first, second = read(tmp_path, record())
    assert (first.image.image_id, first.image.file_name) == (7, "7.jpg")
    assert (first.image.height, first.image.width) == (HEIGHT, WIDTH)
    assert (second.image.file_name, second.annotations) == ("3.jpg", [])
    for number, mask in enumerate(first.annotations):
        assert isinstance(mask, InstanceMask)
        assert (mask.rle.mask() == square()).all()
        assert (mask.area, mask.bbox, mask.category_id, mask.iscrowd) == (50, (10, 5, 10, 5), 18, number > 0)


def test_masks_are_those_of_pycocotools(tmp_path: Path) -> None:
    value = record()
    rng = np.random.default_rng(0)
    for entry in value["annotations"]:
        parts = rng.uniform(0, 20, (2, 7, 2)).round(2)
        entry.update(segmentation=parts.reshape(2, -1).tolist(), iscrowd=0)
    path = write(tmp_path, value)
    reference = COCO(path)
    for mask, entry in zip(next(read_instances(path)).annotations, value["annotations"], strict=True):
        assert (mask.rle.mask() == reference.annToMask(entry)).all()


def test_a_right_file_has_no_problems(tmp_path: Path) -> None:
    instances = load_instances(write(tmp_path, record()))
    assert instances.id_problems == []
    assert [instance_problems(image) for image in instances.images] == [[], []]


def test_fractions_of_pixels_are_no_problem(tmp_path: Path) -> None:
    triangle = [10.3, 5.2, 19.6, 5.9, 14.1, 15.7]
    area = 0.5 * abs((19.6 - 10.3) * (15.7 - 5.2) - (14.1 - 10.3) * (5.9 - 5.2))
    assert problems(tmp_path, 0, segmentation=[triangle], area=area, bbox=[10.3, 5.2, 9.3, 10.5]) == []


@pytest.mark.parametrize(
    ("number", "changes", "words"),
    [
        (0, {"area": 70}, "area 70 where the mask has 50 pixels"),
        (0, {"area": 30}, "area 30"),
        (1, {"area": 51}, "area 51 where the mask has 50 pixels"),
        (0, {"bbox": [10, 5, 12, 5]}, "box is not the mask's"),
        (0, {"bbox": [10, 5, 20, 10]}, "box is not the mask's"),
        (1, {"bbox": [10, 5, 9, 4]}, "SA-1B's convention"),
        (2, {"bbox": [10, 6, 10, 5]}, "box is not the mask's"),
        (0, {"segmentation": [[1, 1, 1, 1, 1, 1]]}, "empty mask"),
        (0, {"segmentation": [[1, 1, 5, 1, 5]]}, "polygon 0 has 5 numbers"),
        (1, {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [1]}}, "broken mask"),
        (2, {"segmentation": {"size": [HEIGHT, WIDTH], "counts": "5"}}, "broken mask"),
        (2, {"segmentation": {"size": [WIDTH, HEIGHT], "counts": "5"}}, "is not the image's"),
    ],
)
def test_each_problem_is_named(tmp_path: Path, number: int, changes: dict[str, Any], words: str) -> None:
    found = problems(tmp_path, number, **changes)
    assert len(found) == 1
    assert found[0].startswith(f"annotations.{number} (id {70 + number}, of 7.jpg): ")
    assert words in found[0]


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ([], "annotations.0.segmentation: no polygon"),
        ([[1, 1, 5, 1]], "polygon 0 has 4 numbers"),
        ([[1, 1, 5, 1, 5, 5], [1, 1, 5, 1, 5, 5, 6]], "polygon 1 has 7 numbers"),
        ([[1, 1, 5, 1, 1e9, 5]], "polygon 0 has an x further outside"),
        ([[1, 1, 5, -21, 5, 5]], "polygon 0 has an y further outside"),
        (
            {"size": [HEIGHT, WIDTH + 1], "counts": [HEIGHT * (WIDTH + 1)]},
            "its size (20, 31) is not the image's (20, 30)",
        ),
        ({"size": [HEIGHT, WIDTH], "counts": [601]}, "do not add up"),
        ({"size": [HEIGHT, WIDTH], "counts": [700, -100]}, "negative"),
        ({"size": [HEIGHT, WIDTH]}, "annotations.0.segmentation.counts: Field required"),
        ([["a"]], "annotations.0.segmentation.0.0: "),
        (5, "annotations.0.segmentation: "),
    ],
)
def test_malformed_masks_are_refused_by_file_and_field(tmp_path: Path, shape: Any, words: str) -> None:
    value = record()
    value["annotations"][0]["segmentation"] = shape
    with pytest.raises(BrokenAnnotationError) as caught:
        read(tmp_path, value)
    assert words in str(caught.value)
    assert "instances_val2017.json" in str(caught.value)


@pytest.mark.parametrize(
    ("place", "change", "words"),
    [
        ("annotations", {"image_id": 8}, "annotations.0.image_id: no image has the id 8"),
        ("annotations", {"category_id": 8}, "annotations.0.category_id: no category has the id 8"),
        ("annotations", {"id": 71}, "annotations: 2 have the id 71"),
        ("images", {"id": 3}, "images: 2 have the id 3"),
        ("images", {"file_name": "3.jpg"}, "images: 2 have the file_name 3.jpg"),
        ("images", {"file_name": "../../3.jpg"}, "images.0.file_name: "),
        ("images", {"file_name": "notes.txt"}, "images.0.file_name: "),
        ("images", {"width": 0}, "images.0.width: "),
        ("images", {"height": 100_000}, "images.0.height: "),
    ],
)
def test_wrong_entries_are_refused_by_field(tmp_path: Path, place: str, change: dict[str, Any], words: str) -> None:
    value = record()
    value[place][0].update(change)
    with pytest.raises(BrokenAnnotationError) as caught:
        read(tmp_path, value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("place", "change", "words"),
    [
        ("annotations", {"image_id": 8}, "annotation 70: no image has the id 8"),
        ("annotations", {"category_id": 8}, "annotation 70: no category has the id 8"),
        ("annotations", {"bbox": [float("nan")] * 4}, "annotations.0.bbox.0: "),
        ("annotations", {"segmentation": [[float("inf"), 1, 2, 3, 4, 5]]}, "annotations.0.segmentation.0.0: "),
        ("categories", {"name": None}, "categories.0.name: "),
        ("images", {"width": 0}, "images.0.width: "),
    ],
)
def test_the_usable_rest_of_a_file_is_read(tmp_path: Path, place: str, change: dict[str, Any], words: str) -> None:
    value = record()
    before = load_usable_instances(write(tmp_path, value))
    assert before.left_out == []
    value[place][0].update(change)
    after = load_usable_instances(write(tmp_path, value))
    assert words in after.left_out[0]
    assert sum(len(image.masks) for image in after.images) < sum(len(image.masks) for image in before.images)


def test_two_images_of_one_id_are_refused_even_so(tmp_path: Path) -> None:
    value = record()
    value["images"][0]["id"] = value["images"][1]["id"]
    with pytest.raises(BrokenAnnotationError, match="images: 2 have the id"):
        load_usable_instances(write(tmp_path, value))


@pytest.mark.parametrize(
    ("place", "keys"),
    [
        ("annotations", ["id", "image_id", "category_id", "segmentation", "bbox", "area", "iscrowd"]),
        ("images", ["id", "file_name", "width", "height"]),
        ("categories", ["id", "name"]),
    ],
)
def test_missing_keys_are_named(tmp_path: Path, place: str, keys: list[str]) -> None:
    for key in keys:
        value = record()
        del value[place][0][key]
        with pytest.raises(BrokenAnnotationError, match=rf"{place}\.0\.{key}: Field required"):
            read(tmp_path, value)
    value = record()
    del value[place]
    with pytest.raises(BrokenAnnotationError, match=f"{place}: Field required"):
        read(tmp_path, value)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"images": [', b"\xff\xfe", b"[" * 100_000, b"NaN"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BrokenAnnotationError, match=r"instances_val2017\.json is not in COCO's format"):
        read(tmp_path, content)


def test_missing_and_oversized_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BrokenAnnotationError, match="cannot be read"):
        read_instances(tmp_path / "absent.json")
    path = write(tmp_path, record())
    monkeypatch.setattr(coco, "MAX_INSTANCES_BYTES", 10)
    with pytest.raises(BrokenAnnotationError, match="more than the 10 that are read"):
        read_instances(path)


numbers = st.integers() | st.floats() | st.integers(-50, 50) | st.floats(-60, 60)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
segmentations = st.one_of(
    st.lists(st.lists(numbers, max_size=9), max_size=3),
    st.fixed_dictionaries({"size": st.just([HEIGHT, WIDTH]), "counts": st.lists(st.integers(-5, 700), max_size=5)}),
    st.fixed_dictionaries({"size": st.just([HEIGHT, WIDTH]), "counts": st.text(max_size=12)}),
    st.fixed_dictionaries({"size": st.lists(numbers, max_size=3), "counts": json_values}),
    json_values,
)
FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(shape=segmentations)
def test_any_segmentation_is_read_or_refused(tmp_path: Path, shape: Any) -> None:
    value = record()
    value["annotations"][0]["segmentation"] = shape
    _read_all(write(tmp_path, value))


@FUZZ
@given(table=st.sampled_from(["images", "annotations", "categories"]), key=st.integers(0, 7), value=json_values)
def test_any_value_anywhere_is_read_or_refused(tmp_path: Path, table: str, key: int, value: Any) -> None:
    whole = record()
    keys = list(whole[table][0])
    if key < len(keys):
        whole[table][0][keys[key]] = value
    else:
        whole[table] = value
    _read_all(write(tmp_path, whole))


@FUZZ
@given(position=st.integers(0, 900), damage=st.binary(max_size=8), end=st.integers(0, 1500))
def test_damaged_bytes_are_read_or_refused(tmp_path: Path, position: int, damage: bytes, end: int) -> None:
    data = bytearray(json.dumps(record()).encode())
    data[position : position + len(damage)] = damage
    _read_all(write(tmp_path, bytes(data[:end])))


def _read_all(path: Path) -> None:
    try:
        instances = load_instances(path)
    except BrokenAnnotationError:
        return
    found = [problem for image in instances.images for problem in instance_problems(image)]
    assert all(isinstance(problem, str) for problem in found)
    try:
        annotations = list(read_instances(path))
    except BrokenAnnotationError:
        return
    assert all(mask.segmentation.size == (a.image.height, a.image.width) for a in annotations for mask in a.annotations)
