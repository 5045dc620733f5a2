"""Reorganising: what goes where, what is skipped and why, and that no run undoes or repeats another's work."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from efficientsam3.data.parallel import map_processes
from efficientsam3.data.sa1b.pairs import Destination
from efficientsam3.data.sa1b.placing import Mode, TarUnit, place_tar
from efficientsam3.data.sa1b.reorganise import SKIPPED_FILE, reorganise
from efficientsam3.data.split import split_of
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.locks import locked

JSON = b'{"image": {"image_id": %d}, "annotations": []}'


def jpeg(number: int) -> bytes:
    """Bytes that pass the quick check for a JPEG; content and length depend on the number."""
    return b"\xff\xd8\xff\xda" + b"x" * (100 + number) + b"\xff\xd9"


def pair(number: int) -> dict[str, bytes]:
    return {f"sa_{number}.jpg": jpeg(number), f"sa_{number}.json": JSON % number}


def pairs(*numbers: int) -> dict[str, bytes]:
    return {name: data for number in numbers for name, data in pair(number).items()}


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"{path.stem}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def tree(root: Path) -> dict[str, bytes]:
    """Every file of a dataset, hidden ones included, with its content, except the lock."""
    files = (path for path in root.rglob("*") if path.is_file() and path.name != ".reorg.lock")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def placed(root: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(root).items() if name.startswith(("images/", "annotations/"))}


def expected(*numbers: int, val_ratio: float = 0.1) -> dict[str, bytes]:
    files = {}
    for name, data in pairs(*numbers).items():
        stem, suffix = os.path.splitext(name)
        kind = "images" if suffix == ".jpg" else "annotations"
        files[f"{kind}/{split_of(stem.encode(), val_ratio)}/{name}"] = data
    return files


def reasons(output: Path) -> dict[str, str]:
    rows = [line.split("\t") for line in (output / SKIPPED_FILE).read_text().splitlines()[1:]]
    return {name: reason for _, name, reason in rows}


@pytest.mark.parametrize("workers", [1, 2])
def test_tars_and_folders_become_a_dataset(tmp_path: Path, workers: int) -> None:
    write_tar(tmp_path / "source/sa_000000.tar", pairs(*range(40)))
    write_tar(tmp_path / "source/deeper/sa_000001.tar", dict(reversed(pairs(*range(40, 60)).items())))
    write_folder(tmp_path / "source/sa_000002", pairs(*range(60, 80)))
    report = reorganise(tmp_path / "source", tmp_path / "out", workers=workers)
    assert (report.placed, report.kept, report.skipped) == (80, 0, [])
    assert placed(tmp_path / "out") == expected(*range(80))
    assert {name.split("/")[1] for name in placed(tmp_path / "out")} == {"train", "val"}


def test_in_place_moving_leaves_nothing_behind(tmp_path: Path) -> None:
    write_folder(tmp_path / "sa_000002", pairs(1, 2, 3))
    write_folder(tmp_path, pairs(4))
    reorganise(tmp_path, tmp_path, mode="move")
    assert placed(tmp_path) == expected(1, 2, 3, 4)
    assert set(tree(tmp_path)) - set(placed(tmp_path)) == {"reorg.json", SKIPPED_FILE}
    report = reorganise(tmp_path, tmp_path, mode="move")
    assert (report.placed, report.kept) == (0, 0)
    assert placed(tmp_path) == expected(1, 2, 3, 4)


@pytest.mark.parametrize("mode", ["link", "copy"])
def test_linking_and_copying_leave_the_source(tmp_path: Path, mode: Mode) -> None:
    source = write_folder(tmp_path / "source", pairs(1, 2))
    reorganise(source, tmp_path / "out", mode=mode)
    assert placed(tmp_path / "out") == expected(1, 2)
    assert tree(source) == pairs(1, 2)
    same = [path for path in (tmp_path / "out/images").rglob("*.jpg") if path.samefile(source / path.name)]
    assert len(same) == (2 if mode == "link" else 0)


def test_a_second_run_keeps_what_is_there_and_adds_what_is_missing(tmp_path: Path) -> None:
    write_tar(tmp_path / "source/a.tar", pairs(*range(10)))
    reorganise(tmp_path / "source", tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/images").rglob("*.jpg")}
    lost = next(iter(before))
    lost.unlink()
    report = reorganise(tmp_path / "source", tmp_path / "out")
    assert (report.placed, report.kept) == (1, 9)
    assert placed(tmp_path / "out") == expected(*range(10))
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if path != lost)


def test_a_later_tar_moves_no_image_between_splits(tmp_path: Path) -> None:
    write_tar(tmp_path / "source/b.tar", pairs(*range(50)))
    reorganise(tmp_path / "source", tmp_path / "out", val_ratio=0.3)
    first = set(placed(tmp_path / "out"))
    write_tar(tmp_path / "source/a.tar", pairs(*range(50, 90)))
    reorganise(tmp_path / "source", tmp_path / "out", val_ratio=0.3)
    assert first < set(placed(tmp_path / "out"))
    assert placed(tmp_path / "out") == expected(*range(90), val_ratio=0.3)


def test_what_is_skipped_is_counted_and_listed_with_its_reason(tmp_path: Path) -> None:
    whole, half = pairs(1), jpeg(2)[:-2]
    files = whole | {
        "sa_2.jpg": half,
        "sa_2.json": JSON % 2,
        "sa_3.jpg": jpeg(3),
        "sa_3.json": b'{"annotations": [',
        "sa_4.jpg": jpeg(4),
        "sa_5.json": JSON % 5,
        "sa_6.jpg": b"",
        "readme.txt": b"hello",
    }
    write_tar(tmp_path / "tars/a.tar", files)
    write_folder(tmp_path / "folder", files)
    (tmp_path / "folder/sa_7.jpg").symlink_to(tmp_path / "folder/sa_1.jpg")
    for source in ("tars", "folder"):
        output = tmp_path / f"out-{source}"
        report = reorganise(tmp_path / source, output)
        assert report.placed == 1
        assert placed(output) == expected(1)
        listed = reasons(output)
        assert len(report.skipped) == len(listed)
        assert listed["sa_2.jpg"] == "not a whole JPEG"
        assert listed["sa_2.json"] == "an annotation without image"
        assert listed["sa_3.json"] == "not a whole annotation file"
        assert listed["sa_3.jpg"] == "an image without annotation"
        assert listed["sa_4.jpg"] == "an image without annotation"
        assert listed["sa_5.json"] == "an annotation without image"
        assert listed["sa_6.jpg"] in {"not a whole JPEG", "empty"}
    assert reasons(tmp_path / "out-tars")["readme.txt"] == "neither .jpg nor .json"
    assert reasons(tmp_path / "out-folder")["sa_7.jpg"] == "a link, or not a plain file"


def test_names_in_the_list_of_skipped_files_are_escaped(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", pairs(1) | {"sa\t2\n\x1b[31m.jpg": b"x"})
    reorganise(tmp_path / "a.tar", tmp_path / "out")
    lines = (tmp_path / "out" / SKIPPED_FILE).read_text().splitlines()
    assert len(lines) == 2
    assert "\\t2\\n\\x1b[31m.jpg" in lines[1]


def test_nothing_of_a_hostile_tar_lands_outside(tmp_path: Path) -> None:
    path = tmp_path / "source/a.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for name in (f"{tmp_path}/evil.jpg", "../../evil.jpg", "../evil.json", "x/../../../evil.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"evil"))
        for name, kind in (("sa_1.jpg", tarfile.SYMTYPE), ("sa_2.jpg", tarfile.LNKTYPE), ("sa_3.jpg", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "../../../evil"
            tar.addfile(info)
        # A link first, then a file through it.
        info = tarfile.TarInfo("images")
        info.type, info.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(info)
        for name, data in pair(5).items():
            info = tarfile.TarInfo(f"images/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    report = reorganise(tmp_path / "source", tmp_path / "out")
    assert placed(tmp_path / "out") == expected(5)
    assert len(report.skipped) == 8
    assert sorted(os.listdir(tmp_path)) == ["out", "source"]
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


def test_tars_are_deleted_only_when_all_of_them_is_in_place(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "source/a.tar", pairs(1, 2))
    damaged = write_tar(tmp_path / "source/b.tar", pairs(3) | {"sa_4.jpg": jpeg(4)})
    reorganise(tmp_path / "source", tmp_path / "out", delete_tars=True)
    assert not whole.exists()
    assert damaged.exists()
    assert placed(tmp_path / "out") == expected(1, 2, 3)


def test_deleting_compares_contents_and_a_crash_s_zeros_are_replaced(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", pairs(1))
    output = tmp_path / "out"
    reorganise(tar, output)
    place = Path(Destination(output, 0.1).place("sa_1", ".jpg"))
    other = jpeg(1).replace(b"x", b"y")
    place.write_bytes(other)
    reorganise(tar, output, delete_tars=True)
    assert tar.exists()
    assert place.read_bytes() == other
    assert "other content" in reasons(output)["sa_1.jpg"]
    place.write_bytes(bytes(len(other)))
    assert reorganise(tar, output, delete_tars=True).placed == 1
    assert placed(output) == expected(1)
    assert not tar.exists()


def test_only_staged_files_are_removed(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", pairs(1))
    staging = write_folder(tmp_path / "out/images/train/.staging", {"77-sa_3.jpg": b"left by a crash"})
    assert reorganise(source, tmp_path / "out").placed == 1
    assert not staging.exists()
    write_folder(staging, {"thesis.txt": b"mine"})
    with pytest.raises(UserError, match=r"thesis\.txt was not put there"):
        reorganise(source, tmp_path / "out")
    assert (staging / "thesis.txt").exists()


def test_another_image_of_the_same_name_does_not_replace_the_first(tmp_path: Path) -> None:
    write_tar(tmp_path / "source/a.tar", pairs(1))
    reorganise(tmp_path / "source", tmp_path / "out")
    write_tar(tmp_path / "source/b.tar", {"sa_1.jpg": jpeg(77), "sa_1.json": JSON % 1})
    report = reorganise(tmp_path / "source", tmp_path / "out")
    assert placed(tmp_path / "out") == expected(1)
    assert "other content" in report.skipped[0].reason


def test_a_file_that_a_crash_left_short_is_replaced(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", pairs(1))
    output = tmp_path / "out"
    reorganise(tmp_path / "a.tar", output)
    place = Path(Destination(output, 0.1).place("sa_1", ".jpg"))
    place.write_bytes(b"")
    assert reorganise(tmp_path / "a.tar", output).placed == 1
    assert placed(output) == expected(1)


def test_another_ratio_or_another_dataset_is_refused(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", pairs(1))
    reorganise(source, tmp_path / "out", val_ratio=0.25)
    with pytest.raises(UserError, match=r"--val-ratio 0\.1 is not the 0\.25"):
        reorganise(source, tmp_path / "out")
    write_folder(tmp_path / "other/images/train", pairs(1))
    with pytest.raises(UserError, match="not put there by this command"):
        reorganise(source, tmp_path / "other")
    assert placed(tmp_path / "other") == {f"images/train/{name}": data for name, data in pairs(1).items()}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"val_ratio": 1.5}, "--val-ratio 1.5"),
        ({"workers": 0}, "--workers 0"),
        ({"source": "absent"}, "does not exist"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_made(
    tmp_path: Path, arguments: dict[str, object], words: str
) -> None:
    write_folder(tmp_path / "source", pairs(1))
    source = tmp_path / str(arguments.pop("source", "source"))
    with pytest.raises(UserError, match=words):
        reorganise(source, tmp_path / "out", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_source_without_anything_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(UserError, match=r"no \.tar"):
        reorganise(tmp_path / "source", tmp_path / "out")


@pytest.mark.parametrize("failing", [8, 9])  # before a pair, and within one
def test_a_full_disk_is_one_sentence_and_no_image_lacks_its_annotation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    write_tar(tmp_path / "a.tar", pairs(*range(9)))
    replace, calls = os.replace, []

    def full(waiting: str, place: str) -> None:
        calls.append(place)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        replace(waiting, place)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(UserError, match="No space left"):
            reorganise(tmp_path / "a.tar", tmp_path / "out")
    files = placed(tmp_path / "out")
    assert not any("staging" in name for name in files)
    images = {Path(name).stem for name in files if name.startswith("images")}
    assert images <= {Path(name).stem for name in files if name.startswith("annotations")}
    assert reorganise(tmp_path / "a.tar", tmp_path / "out").placed == 9 - len(images)
    assert placed(tmp_path / "out") == expected(*range(9))


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", pairs(1))
    reorganise(source, tmp_path / "out")
    with (
        locked(tmp_path / "out" / ".reorg.lock", "--output out"),
        pytest.raises(UserError, match="another run"),
    ):
        reorganise(source, tmp_path / "out")


def test_the_split_is_a_fixed_function() -> None:
    """Datasets on disk depend on it; these splits were computed once with hashlib.sha256."""
    ids = [f"sa_{number}".encode() for number in range(20_000)]
    val = [image_id for image_id in ids if split_of(image_id, 0.1) == "val"]
    assert val[:5] == [b"sa_0", b"sa_2", b"sa_4", b"sa_16", b"sa_38"]
    assert abs(len(val) / len(ids) - 0.1) < 0.01
    assert set(val) < {image_id for image_id in ids if split_of(image_id, 0.2) == "val"}
    assert split_of(b"sa_1", 0.0) == "train"
    assert split_of(b"sa_1", 1.0) == "val"


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_worker_arrives_as_itself(tmp_path: Path, workers: int) -> None:
    """The folders that it writes to do not exist."""
    units = [TarUnit(Destination(tmp_path / "out", 0.1), write_tar(tmp_path / "a.tar", pairs(1)), False)] * 3
    with pytest.raises(UserError, match="Cannot write"):
        list(map_processes(place_tar, units, workers, lambda _: None))
