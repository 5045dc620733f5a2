"""Annotated objects, from their files to the pixels that an encoder is given."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientsam3.data.annotations.sa1b import BrokenAnnotationError
from efficientsam3.data.augment import Augmentation
from efficientsam3.data.layouts import DATASETS
from efficientsam3.data.loader import ImageDataset, ImageSample
from efficientsam3.data.objects import POINTS, ObjectReader
from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.runtime.files import write_text
from efficientsam3.testing.sample_images import sa1b_annotation


@pytest.fixture
def bright(tmp_path: Path) -> Path:
    """One black image of 60 x 90 with two white objects, in SA-1B's format, and one without annotation."""
    labels = np.zeros((60, 90), dtype=np.int64)
    labels[10:25, 5:40], labels[30:55, 60:85] = 1, 2
    for name in ("sa_1", "sa_2"):
        folder = tmp_path / "images" / "train"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.repeat(255 * (labels > 0)[..., None].astype(np.uint8), 3, axis=2)).save(
            folder / f"{name}.png"
        )
    annotation = sa1b_annotation(1, labels)
    annotation["annotations"] = annotation["annotations"][1:]  # without the background
    write_text(tmp_path / "annotations" / "train" / "sa_1.json", json.dumps(annotation))
    return tmp_path


def dataset(root: Path, resize: str, hflip: float) -> ImageDataset:
    layout = DATASETS["sa1b"]
    listing, annotated = layout.list_split(root, "train"), layout.annotated(root, "train")
    assert annotated is not None
    preprocessing = Preprocessing(image_size=120, resize=resize)  # type: ignore[arg-type]
    return ImageDataset(
        listing,
        np.arange(2),
        preprocessing,
        Augmentation(hflip=hflip),
        lambda image_id, row: 0,
        objects_of=ObjectReader(annotated, listing.ids),
    )


@pytest.mark.parametrize("hflip", [0.0, 1.0])
@pytest.mark.parametrize("resize", ["square", "pad"])
def test_boxes_and_points_lie_on_the_objects_in_the_input(bright: Path, resize: str, hflip: float) -> None:
    sample, other = (dataset(bright, resize, hflip)[item] for item in range(2))
    assert isinstance(sample, ImageSample)
    assert isinstance(other, ImageSample)
    assert other.objects is None
    assert sample.objects is not None
    light = sample.pixels[0].numpy() > 127
    assert sample.objects.points.shape == (2, POINTS, 2)
    for box, points in zip(sample.objects.boxes, sample.objects.points, strict=True):
        x0, y0, x1, y1 = np.round(box).astype(int)
        assert light[y0:y1, x0:x1].mean() > 0.97
        around = light[max(0, y0 - 3) : y1 + 3, max(0, x0 - 3) : x1 + 3]
        assert around.sum() == pytest.approx(light[y0:y1, x0:x1].sum(), rel=0.02)
        assert len({tuple(point) for point in points.tolist()}) > POINTS / 2
        assert ((box[:2] <= points) & (points < box[2:])).all()


def test_points_differ_from_object_to_object_and_stay_the_same(bright: Path) -> None:
    first, again = (dataset(bright, "pad", 0.0)[0] for _ in range(2))
    assert isinstance(first, ImageSample)
    assert isinstance(again, ImageSample)
    assert first.objects is not None
    assert again.objects is not None
    np.testing.assert_array_equal(first.objects.points, again.objects.points)


def test_an_annotation_of_another_size_is_named(bright: Path) -> None:
    Image.new("RGB", (80, 60)).save(bright / "images" / "train" / "sa_1.png")
    found = dataset(bright, "pad", 0.0)[0]
    assert isinstance(found, BrokenAnnotationError)
    assert "sa_1.png is 60 x 80, its annotation is for 60 x 90" in str(found)


def test_objects_are_read_from_an_instances_file_without_its_crowds(tmp_path: Path) -> None:
    (tmp_path / "train2017").mkdir()
    for name in ("b", "a", "c"):
        Image.new("RGB", (90, 60)).save(tmp_path / "train2017" / f"{name}.png")
    images = [{"id": place, "file_name": f"{name}.png", "width": 90, "height": 60} for place, name in enumerate("bac")]
    square = [5.0, 10.0, 40.0, 10.0, 40.0, 25.0, 5.0, 25.0]
    annotations = [
        {
            "id": number,
            "image_id": 0,
            "category_id": number,
            "segmentation": shape,
            "area": 525,
            "bbox": [5, 10, 35, 15],
        }
        | {"iscrowd": int(isinstance(shape, dict))}
        for number, shape in enumerate(([square], {"size": [60, 90], "counts": [0, 5400]}))
    ]
    tables = {"images": images, "annotations": annotations, "categories": []}
    tables["categories"] = [{"id": number, "name": name} for number, name in enumerate(["square", "crowd", "kite"])]
    write_text(tmp_path / "annotations" / "instances_train2017.json", json.dumps(tables))
    layout = DATASETS["coco"]
    annotated = layout.annotated(tmp_path, "train")
    assert annotated is not None
    ids = layout.list_split(tmp_path, "train").ids
    read = ObjectReader(annotated, np.array([*ids, b"d"]))
    assert read(0) is read(2) is read(3) is None
    found = read(1)
    assert found is not None
    assert read.nouns == {"square", "crowd", "kite"}
    assert found.nouns == found.placed((30, 45), True).nouns == ("square",)
    assert found.boxes.tolist() == [[5, 10, 40, 25]]
    assert ((found.points >= (5, 10)) & (found.points < (40, 25))).all()
