"""Checking a dataset: each kind of problem is found and named, and `fix` moves only useless files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from efficientsam3.data.check.files import Kind
from efficientsam3.data.check.run import PROBLEMS_FILE, check_dataset
from efficientsam3.data.layouts import list_images
from efficientsam3.runtime.errors import UserError


@pytest.fixture
def dataset(tmp_path: Path, photographs_path: Path) -> Path:
    """Six training and three validation images, to be damaged."""
    return Path(shutil.copytree(photographs_path, tmp_path / "data"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(path: Path, edit: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_whole_dataset_has_no_problems(dataset: Path, workers: int) -> None:
    report = check_dataset(dataset, workers=workers)
    assert report.problems == []
    assert report.images == {"train": 6, "val": 3}
    assert (len(report.sizes), report.annotated) == (9, 9)
    assert report.masks > 9
    assert report.bytes == sum(path.stat().st_size for path in (dataset / "images").rglob("*.jpg"))
    assert (dataset / PROBLEMS_FILE).read_text() == "kind\tfile\tdetail\n"


def test_every_kind_of_problem_is_found(dataset: Path) -> None:
    images, annotations = dataset / "images", dataset / "annotations"
    truncate(images / "train/sa_1.jpg")
    truncate(annotations / "train/sa_2.json")
    (annotations / "val/sa_99.json").write_text("{}")
    change(annotations / "train/sa_3.json", lambda record: record["annotations"][0].update(area=1))
    change(annotations / "train/sa_4.json", lambda record: record["image"].update(width=1))
    shutil.copy(images / "train/sa_5.jpg", images / "val/sa_77.jpg")
    shutil.copy(images / "train/sa_6.jpg", images / "val/sa_6.jpg")
    report = check_dataset(dataset)
    files = {kind: {p.file.relative_to(dataset) for p in report.problems if p.kind is kind} for kind in Kind}
    assert files[Kind.BROKEN_IMAGE] == {Path("images/train/sa_1.jpg")}
    assert files[Kind.BROKEN_ANNOTATION] == {Path("annotations/train/sa_2.json")}
    assert files[Kind.NO_IMAGE] == {Path("annotations/val/sa_99.json")}
    assert files[Kind.MASK] >= {Path("annotations/train/sa_3.json")}
    assert files[Kind.SIZE] == {Path("annotations/train/sa_4.json")}
    assert files[Kind.DUPLICATE] == {Path("images/val/sa_77.jpg"), Path("images/val/sa_6.jpg")}
    assert files[Kind.BOTH_SPLITS] == {Path("images/val/sa_6.jpg")}
    assert len((dataset / PROBLEMS_FILE).read_text().splitlines()) == 1 + len(report.problems)


def test_fix_moves_only_useless_files(dataset: Path) -> None:
    truncate(dataset / "images/train/sa_1.jpg")
    truncate(dataset / "annotations/train/sa_2.json")
    change(dataset / "annotations/train/sa_3.json", lambda record: record["annotations"][0].update(area=1))
    before = sum(path.is_file() for path in dataset.rglob("*"))
    report = check_dataset(dataset, fix=True)
    moved = {str(path.relative_to(dataset / ".quarantine")) for path in report.quarantined}
    assert moved == {"images/train/sa_1.jpg", "annotations/train/sa_1.json", "annotations/train/sa_2.json"}
    assert all(path.is_file() for path in report.quarantined)
    assert sum(path.is_file() for path in dataset.rglob("*")) == before + 1  # the list of problems
    assert len(list_images(dataset, "train")) == 5
    assert [problem.kind for problem in check_dataset(dataset).problems] == [Kind.MASK]


def test_fixing_twice_keeps_both_files(dataset: Path) -> None:
    for _ in range(2):
        (dataset / "images/train/sa_1.jpg").write_bytes(b"broken")
        check_dataset(dataset, fix=True)
    assert len(list((dataset / ".quarantine/images/train").iterdir())) == 2


def test_other_datasets_are_checked_without_annotations(dataset: Path) -> None:
    truncate(dataset / "images/train/sa_1.jpg")
    report = check_dataset(dataset, "images")
    assert sum(report.images.values()) == 9
    assert [problem.kind for problem in report.problems] == [Kind.BROKEN_IMAGE]


def test_images_alone_are_a_dataset(dataset: Path) -> None:
    shutil.rmtree(dataset / "annotations")
    report = check_dataset(dataset)
    assert (report.annotated, report.problems) == (0, [])


def test_an_empty_dataset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images/train").mkdir(parents=True)
    with pytest.raises(UserError, match="no images in either split"):
        check_dataset(tmp_path)


def test_a_report_replaces_earlier_reports_alone(dataset: Path, tmp_path: Path) -> None:
    check_dataset(dataset, problems_file=tmp_path / "report.tsv")
    check_dataset(dataset, problems_file=tmp_path / "report.tsv")
    (tmp_path / "report.tsv").write_text("mine")
    with pytest.raises(UserError, match=r"report\.tsv is no earlier list of problems"):
        check_dataset(dataset, problems_file=tmp_path / "report.tsv")
    assert (tmp_path / "report.tsv").read_text() == "mine"
