"""Views are what they say, with masks that fit them; what is interrupted goes on, what is broken is named."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientsam3.data import views
from efficientsam3.data.annotations.sa1b import mask_problems, read_annotation
from efficientsam3.data.images import read_pixels
from efficientsam3.data.layouts import list_images
from efficientsam3.data.views import View, ViewSettings, draw_view, write_views
from efficientsam3.runtime.errors import UserError
from efficientsam3.testing.sample_images import write_sample_images

SETTINGS = ViewSettings(count=2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sa-1b")
    write_sample_images(directory, train=2, val=1)
    return directory


@pytest.fixture(scope="module")
def written(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("views") / "output"
    assert write_views(dataset, output, SETTINGS, "sa1b").images == 7
    return output


def tree(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*.[jp]*")}


def test_training_images_have_views_and_all_images_are_there(dataset: Path, written: Path) -> None:
    ids = [[id.decode() for id in list_images(written, split).ids.tolist()] for split in ("train", "val")]
    assert ids == [[f"sa_{n}{view}" for n in (1, 2) for view in ("", "_view1", "_view2")], ["sa_3"]]
    for path in (dataset / "images").rglob("*.jpg"):
        assert path.read_bytes() == (written / path.relative_to(dataset)).read_bytes()


def test_a_view_shows_its_part_of_the_image_and_of_the_masks(dataset: Path, written: Path) -> None:
    whole = read_pixels(dataset / "images/train/sa_1.jpg")
    masks = [each.rle.mask() for each in read_annotation(dataset / "annotations/train/sa_1.json").annotations]
    for number in (1, 2):
        view = draw_view(SETTINGS, "sa_1", number, (whole.shape[0], whole.shape[1]))
        assert view.mirrored or number == 2
        shown = read_pixels(written / f"images/train/sa_1_view{number}.jpg")
        assert np.abs(shown.astype(int) - view.of(whole)).mean() < 3  # of 255; JPEG loses a little
        annotation = read_annotation(written / f"annotations/train/sa_1_view{number}.json")
        assert mask_problems(annotation) == []
        assert annotation.annotations
        for each in annotation.annotations:
            assert any(np.array_equal(each.rle.mask(), view.of(mask)) for mask in masks)
            ((x, y),) = each.point_coords
            assert each.rle.contains(int(x), int(y))


def test_objects_that_a_crop_cuts_off_are_left_out(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotation = read_annotation(dataset / "annotations/train/sa_1.json")
    seen = [list(views._seen(View(0, 0, 1, columns, mirrored=False), annotation.annotations)) for columns in (1, 200)]
    assert seen == [[], []]  # of a first row, none shows three tenths


@given(
    size=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    smallest=st.floats(0.01, 1),
    number=st.integers(1, 50),
    seed=st.integers(0, 2**31 - 1),
)
def test_a_view_lies_in_its_image(size: tuple[int, int], smallest: float, number: int, seed: int) -> None:
    view = draw_view(ViewSettings(50, smallest, seed), "image", number, size)
    assert 0 <= view.top <= size[0] - view.height < size[0]
    assert 0 <= view.left <= size[1] - view.width < size[1]
    assert view.height * view.width >= (smallest * 0.79) ** 2 * size[0] * size[1] - max(size)  # rounding
    assert view == draw_view(ViewSettings(50, smallest, seed), "image", number, size)


def test_an_interrupted_run_goes_on(
    dataset: Path, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, encode, calls = tmp_path / "output", views._jpeg, iter(range(100))

    def stopped(pixels: views.Pixels) -> bytes:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return encode(pixels)

    monkeypatch.setattr(views, "_jpeg", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_views(dataset, output, SETTINGS, "sa1b")
    before = tree(output)
    assert 0 < len(before) < len(tree(written))
    report = write_views(dataset, output, SETTINGS, "sa1b")
    assert report.images == len(list(written.rglob("*.jpg"))) - sum(name.endswith("jpg") for name in before)
    assert tree(output) == tree(written) | before


def test_a_dataset_of_other_views_or_of_something_else_is_left_alone(
    dataset: Path, written: Path, tmp_path: Path
) -> None:
    before = tree(written)
    with pytest.raises(UserError, match=r"has other views .* choose another --output"):
        write_views(dataset, written, ViewSettings(count=3), "sa1b")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"has something else in it \(mine.txt\): choose a new folder"):
        write_views(dataset, tmp_path, SETTINGS, "sa1b")
    with pytest.raises(UserError, match="lie in one another"):
        write_views(dataset, dataset / "views", SETTINGS, "sa1b")
    assert tree(written) == before


def test_a_broken_image_is_left_out_and_named(tmp_path: Path) -> None:
    write_sample_images(tmp_path / "data", train=2, val=1)
    broken = tmp_path / "data/images/train/sa_1.jpg"
    broken.write_bytes(broken.read_bytes()[:500])
    report = write_views(tmp_path / "data", tmp_path / "output", SETTINGS, "sa1b")
    assert report.images == 4
    assert [str(broken) in sentence for sentence in report.left_out] == [True]


def test_images_without_masks_have_views_without_masks(dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    report = write_views(dataset / "images", output, SETTINGS, "images", workers=2)
    assert report.images == 7
    assert not (output / "annotations").exists()
    assert json.loads((output / views.SETTINGS_FILE).read_text())["views"] == 2
