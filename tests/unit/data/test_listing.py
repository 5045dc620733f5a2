"""Listings: deterministic order, ids, splits, refusals, and their size in workers."""

import os
import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientsam3.data import listing, listing_cache
from efficientsam3.data.layouts import list_images
from efficientsam3.data.listing import ImageListing, check_disjoint, ids_from_tensor, ids_to_tensor
from efficientsam3.data.split import split_of
from efficientsam3.runtime.errors import UserError


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def ids(listing: ImageListing) -> list[str]:
    return [listing.id(index) for index in range(len(listing))]


def test_sa1b_lists_images_sorted_with_stems_as_ids(tmp_path: Path) -> None:
    touch(tmp_path / "images/train", "sa_2.jpg", "sa_10.JPG", "sa_1.v2.png", ".hidden.jpg", "notes.txt")
    (tmp_path / "images/train/folder.jpg").mkdir()
    listing = list_images(tmp_path, "train")
    assert ids(listing) == ["sa_1.v2", "sa_10", "sa_2"]
    assert listing.ids.tolist() == [b"sa_1.v2", b"sa_10", b"sa_2"]
    assert [listing.path(index).name for index in range(3)] == ["sa_1.v2.png", "sa_10.JPG", "sa_2.jpg"]
    assert all(listing.path(index).is_file() for index in range(3))


def test_an_empty_or_missing_split_is_an_empty_listing(tmp_path: Path) -> None:
    (tmp_path / "images/train").mkdir(parents=True)
    assert len(list_images(tmp_path, "train")) == 0
    assert len(list_images(tmp_path, "val")) == 0
    assert list_images(tmp_path, "val").ids.tolist() == []


@pytest.mark.parametrize("missing", ["images", "everything"])
def test_sa1b_without_images_names_the_remedy(tmp_path: Path, missing: str) -> None:
    data_path = tmp_path if missing == "images" else tmp_path / "absent"
    with pytest.raises(UserError, match=r"python data/reorg_sa1b\.py"):
        list_images(data_path, "train")


def test_limit_takes_the_first_after_sorting(tmp_path: Path) -> None:
    touch(tmp_path / "images/train", *(f"sa_{number}.jpg" for number in (3, 1, 2)))
    assert ids(list_images(tmp_path, "train", limit=2)) == ["sa_1", "sa_2"]
    assert len(list_images(tmp_path, "train", limit=0)) == 3
    assert len(list_images(tmp_path, "train", limit=9)) == 3


def test_two_files_with_one_id_are_refused_naming_both(tmp_path: Path) -> None:
    touch(tmp_path / "images/train", "sa_1.jpg", "sa_1.png")
    with pytest.raises(UserError, match=r"sa_1\.(jpg|png).*sa_1\.(jpg|png)"):
        list_images(tmp_path, "train")


@pytest.mark.parametrize("name", [b"a\nb.jpg", b"a\rb.jpg", b"\xff\xfe.jpg"])
def test_names_that_cannot_be_a_line_of_text_are_refused(tmp_path: Path, name: bytes) -> None:
    with pytest.raises(UserError, match="rename it"):
        ImageListing(tmp_path, [b"fine.jpg", name])


def test_names_beyond_ascii_survive(tmp_path: Path) -> None:
    touch(tmp_path / "images/val", "Übung.jpg", "空.jpg")
    listing = list_images(tmp_path, "val")
    assert ids(listing) == ["Übung", "空"]
    assert listing.path(1).is_file()


def test_a_tree_is_split_by_a_hash_of_the_relative_path(tmp_path: Path) -> None:
    names = [f"class{number % 7}/{number}.webp" for number in range(300)]
    touch(tmp_path, *names, "readme.md", ".cache/thumb.jpg")
    train, val = list_images(tmp_path, "train", "images"), list_images(tmp_path, "val", "images")
    assert sorted(ids(train) + ids(val)) == sorted(name.removesuffix(".webp") for name in names)
    assert all(split_of(image_id) == "val" for image_id in val.ids.tolist())
    assert 10 <= len(val) <= 60
    check_disjoint(train, val)


def test_a_tree_with_train_and_val_keeps_them_apart_with_distinct_ids(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.jpg", "val/a/1.jpg", "val/2.png", "other/3.jpg")
    train, val = list_images(tmp_path, "train", "images"), list_images(tmp_path, "val", "images")
    assert (ids(train), ids(val)) == (["train/a/1"], ["val/2", "val/a/1"])
    assert val.path(1) == tmp_path / "val/a/1.jpg"
    check_disjoint(train, val)


@pytest.mark.parametrize("layout", ["{}2017", "images/{}2017", "{}2014", "{}"])
def test_coco_folders(tmp_path: Path, layout: str) -> None:
    touch(tmp_path, layout.format("train") + "/000000000009.jpg", layout.format("val") + "/000000000139.jpg")
    assert ids(list_images(tmp_path, "train", "coco")) == ["000000000009"]
    assert ids(list_images(tmp_path, "val", "coco")) == ["000000000139"]


def test_a_folder_that_is_not_coco_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train2017"):
        list_images(tmp_path, "train", "coco")


def test_an_id_in_both_splits_is_refused_naming_both_files(tmp_path: Path) -> None:
    touch(tmp_path / "images", "train/sa_1.jpg", "train/sa_2.jpg", "val/sa_2.png", "val/sa_3.jpg")
    with pytest.raises(UserError, match=r"train/sa_2\.jpg and .*val/sa_2\.png"):
        check_disjoint(list_images(tmp_path, "train"), list_images(tmp_path, "val"))


def test_a_pickled_listing_is_the_same(tmp_path: Path) -> None:
    listing = ImageListing(tmp_path, [b"b.jpg", b"a.PNG"])
    copy = pickle.loads(pickle.dumps(listing))
    assert ids(copy) == ["a", "b"]
    assert copy.path(0) == tmp_path / "a.PNG"


def test_spawned_workers_are_sent_a_handle_not_the_table(tmp_path: Path) -> None:
    listing = ImageListing(tmp_path, [f"sa_{number:06}.jpg".encode() for number in range(20_000)])
    assert len(ForkingPickler.dumps(listing)) < 2_000


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that counts as large, last changed a while ago."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(listing_cache, "SMALLEST", 1)
    touch(tmp_path / "data/images/train", "b.jpg", "a.PNG")
    settle(tmp_path / "data/images/train")
    return tmp_path / "data"


def settle(folder: Path) -> None:
    os.utime(folder, ns=(0, folder.stat().st_mtime_ns - 10**10))


def test_a_listing_comes_from_the_cache_while_the_folder_is_unchanged(
    cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = list_images(cached, "train")
    monkeypatch.setattr(listing, "names_in", lambda _: pytest.fail("scanned again"))
    again = list_images(cached, "train")
    assert ids(again) == ids(first) == ["a", "b"]
    assert again.path(0) == cached / "images/train/a.PNG"


@pytest.mark.parametrize("change", ["add", "remove", "rename"])
def test_the_cache_notices_changes(cached: Path, change: str) -> None:
    folder = cached / "images/train"
    assert ids(list_images(cached, "train")) == ["a", "b"]
    if change == "add":
        touch(folder, "c.jpg")
    elif change == "remove":
        (folder / "b.jpg").unlink()
    else:
        (folder / "b.jpg").rename(folder / "d.jpg")
    expected = {"add": ["a", "b", "c"], "remove": ["a"], "rename": ["a", "d"]}[change]
    assert ids(list_images(cached, "train")) == expected
    settle(folder)
    assert ids(list_images(cached, "train")) == expected


def test_a_folder_that_has_just_changed_is_not_cached(cached: Path, tmp_path: Path) -> None:
    touch(cached / "images/train", "c.jpg")
    list_images(cached, "train")
    assert not list((tmp_path / "cache").rglob("*.npz"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 damaged", b"\x93NUMPY"])
def test_a_damaged_cache_is_passed_over(cached: Path, tmp_path: Path, content: bytes) -> None:
    list_images(cached, "train")
    (cache,) = (tmp_path / "cache").rglob("*.npz")
    cache.write_bytes(content)
    assert ids(list_images(cached, "train")) == ["a", "b"]


def test_a_cache_that_cannot_be_written_is_ignored(cached: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    assert ids(list_images(cached, "train")) == ["a", "b"]


@given(st.lists(st.binary(min_size=1, max_size=9).filter(lambda value: value[-1] != 0)), st.integers(1, 2))
def test_ids_survive_the_tensor(values: list[bytes], stride: int) -> None:
    names = np.array(values, dtype="S9")[::stride]  # a strided array is not contiguous
    table = ids_to_tensor(names)
    assert table.shape == (len(names), 9)
    assert ids_from_tensor(table).tolist() == names.tolist()


def test_ids_from_a_tensor_are_a_view() -> None:
    table = ids_to_tensor(np.array([b"sa_1", b"sa_2"]))
    assert ids_from_tensor(table).ctypes.data == table.data_ptr()
