"""The table of layouts: what each of them answers, and that adding one takes one entry."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientsam3.cli import main
from efficientsam3.config.schema import DataConfig
from efficientsam3.data.check.run import check_dataset
from efficientsam3.data.layouts import DATASETS, guess_dataset, list_images
from efficientsam3.data.layouts.images import Images
from efficientsam3.data.layouts.layout import Layout
from efficientsam3.data.listing import ImageListing
from efficientsam3.data.requests import CheckRequest
from efficientsam3.data.split import Split
from efficientsam3.evaluate.masks.ground_truth import open_ground_truth
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.request import make_request


def test_the_folders_show_the_layout(tmp_path: Path, photographs_path: Path) -> None:
    (tmp_path / "coco" / "images" / "val2017").mkdir(parents=True)
    (tmp_path / "tree" / "train").mkdir(parents=True)
    assert guess_dataset(photographs_path) == "sa1b"
    assert guess_dataset(tmp_path / "coco") == "coco"
    assert guess_dataset(tmp_path / "tree") == "images"
    with pytest.raises(UserError, match="is not a folder"):
        guess_dataset(tmp_path / "nowhere")


def test_masks_are_found_where_they_are(tmp_path: Path, photographs_path: Path) -> None:
    assert DATASETS["sa1b"].has_annotations(photographs_path, "val")
    assert not DATASETS["images"].has_annotations(photographs_path, "val")
    assert not DATASETS["coco"].has_annotations(tmp_path, "val")


class Numbered(Layout):
    """All images in one folder; even numbers are for validation."""

    name = "numbered"
    description = "even numbers are val"

    def recognises(self, folder: Path) -> bool:
        return (folder / "numbered").is_dir()

    def list_split(self, data_path: Path, split: Split) -> ImageListing:
        folder = data_path / "numbered"
        odd = split == "train"
        return ImageListing(folder, (path.name.encode() for path in folder.iterdir() if int(path.stem) % 2 == odd))


@pytest.fixture
def numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset of six images, in a layout added to the table."""
    others = {name: DATASETS.pop(name) for name in ["images"]}
    monkeypatch.setitem(DATASETS, "numbered", Numbered())
    DATASETS.update(others)  # the one that takes any folder stays last
    (tmp_path / "numbered").mkdir()
    for number in range(1, 7):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "numbered" / f"{number}.png")
    return tmp_path


def test_another_layout_is_one_entry(numbered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert guess_dataset(numbered) == "numbered"
    assert list_images(numbered, "val", "numbered").ids.tolist() == [b"2", b"4", b"6"]
    assert list_images(numbered, "train", "numbered", limit=1).ids.tolist() == [b"1"]
    assert DataConfig(DATASET="numbered").DATASET == "numbered"
    assert make_request(CheckRequest, {"data_path": numbered, "dataset": "numbered"}).dataset == "numbered"
    report = check_dataset(numbered, "numbered")
    assert (report.images, report.annotated, report.problems) == ({"train": 3, "val": 3}, 0, [])
    assert main(["data", "check", str(numbered), "--dataset", "numbered"]) == 0
    assert "No problems found" in capsys.readouterr().out
    with pytest.raises(
        UserError, match=r"no annotations of its split val in the layout of sa1b, coco, numbered, images"
    ):
        open_ground_truth(numbered)


def test_an_unknown_layout_is_refused_with_the_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--dataset lvis: should be one of sa1b, coco, images"):
        make_request(CheckRequest, {"data_path": tmp_path, "dataset": "lvis"})
    assert Images().recognises(tmp_path)
