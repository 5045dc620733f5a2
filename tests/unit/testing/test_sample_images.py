import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from efficientsam3.runtime.errors import UserError
from efficientsam3.testing.sample_images import sa1b_annotation, write_sample_images


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sa-1b")
    write_sample_images(directory, train=3, val=2)
    return directory


def tree(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_layout_is_sa1b(dataset: Path) -> None:
    names = [f"train/sa_{n}" for n in (1, 2, 3)] + [f"val/sa_{n}" for n in (4, 5)]
    assert set(tree(dataset)) == {f"images/{n}.jpg" for n in names} | {f"annotations/{n}.json" for n in names}


def test_annotations_describe_their_images(dataset: Path) -> None:
    for path in dataset.glob("annotations/*/*.json"):
        record = json.loads(path.read_text())
        image_path = dataset / "images" / path.parent.name / record["image"]["file_name"]
        with Image.open(image_path) as image:
            assert image.format == "JPEG"
            assert image.size == (record["image"]["width"], record["image"]["height"])
        assert len(record["annotations"]) >= 3
        decoded = [coco_mask.decode(annotation["segmentation"]) for annotation in record["annotations"]]
        assert all(mask.shape == (record["image"]["height"], record["image"]["width"]) for mask in decoded)
        assert np.sum(decoded, axis=0).max() == 1  # segments do not overlap


def test_images_differ_and_are_not_a_flat_colour(dataset: Path) -> None:
    images = [np.asarray(Image.open(path)) for path in sorted(dataset.glob("images/*/*.jpg"))]
    assert all(image.std() > 20 for image in images)
    assert len({image.tobytes() for image in images}) == 5


@pytest.mark.slow
def test_the_same_seed_gives_the_same_files(dataset: Path, tmp_path: Path) -> None:
    write_sample_images(tmp_path / "again", train=3, val=2)
    write_sample_images(tmp_path / "other", train=3, val=2, seed=1)
    assert tree(tmp_path / "again") == tree(dataset)
    assert tree(tmp_path / "other") != tree(dataset)


def test_mask_record_follows_sa1b_conventions() -> None:
    labels = np.zeros((40, 50), dtype=np.int64)
    labels[2:18, 20:45] = 1  # 400 pixels: columns 20..44, rows 2..17
    labels[0, :3] = 2  # too small to be kept
    background, square = sa1b_annotation(7, labels)["annotations"]
    assert square["bbox"] == [20.0, 2.0, 24.0, 15.0]
    assert square["area"] == 400
    assert background["area"] == 40 * 50 - 400 - 3
    (x, y), *_ = square["point_coords"]
    assert labels[int(y), int(x)] == 1
    assert np.array_equal(coco_mask.decode(square["segmentation"]), labels == 1)
    assert (background["id"], square["id"]) == (7000, 7001)


def test_a_file_in_the_way_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "images").write_text("a file")
    with pytest.raises(UserError, match="Cannot write"):
        write_sample_images(tmp_path, train=1, val=0)
