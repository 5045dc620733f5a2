import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.own_files import (
    LIST_NAME,
    OwnFiles,
    check_files,
    check_folder,
    own_folder,
    own_path,
    write_own_text,
)


def _write(output: Path, whole: str = "a test", overwrite: bool = False, **files: str) -> None:
    with own_folder(output, whole, overwrite) as folder:
        for name, text in files.items():
            (folder / name).write_text(text)


def test_own_files_are_replaced(tmp_path: Path) -> None:
    write_own_text(tmp_path / "a", "one", "a test")
    write_own_text(tmp_path / "a", "two", "a test")
    assert (tmp_path / "a").read_text() == "two"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.write_text("mine"), "link", "edited"])
def test_anything_else_is_refused_by_name(make: object, tmp_path: Path) -> None:
    path = tmp_path / "a"
    if make == "edited":
        write_own_text(path, "one", "a test")
        path.write_text("two")
    elif make == "link":
        path.symlink_to("nowhere")
    else:
        assert callable(make)
        make(path)
    before = path.lstat().st_ino
    with pytest.raises(UserError, match=f"replace {path}, which .*--overwrite"):
        check_files([path], "a test")
    with pytest.raises(UserError):
        write_own_text(path, "three", "a test")
    assert path.lstat().st_ino == before
    assert sorted(os.listdir(tmp_path)) == (["a"] if make != "edited" else [LIST_NAME, "a"])


def test_files_of_something_else_are_not_replaced(tmp_path: Path) -> None:
    write_own_text(tmp_path / "a", "one", "a model")
    with pytest.raises(UserError, match="which is part of a model"):
        write_own_text(tmp_path / "a", "two", "a report")
    write_own_text(tmp_path / "a", "two", "a report", overwrite=True)
    write_own_text(tmp_path / "a", "three", "a report")


def test_a_file_that_comes_during_the_work_stays(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="would replace"), own_path(tmp_path / "a", "a test"):
        (tmp_path / "a").write_text("mine")
    assert (tmp_path / "a").read_text() == "mine"
    with pytest.raises(UserError, match="would replace"), own_folder(tmp_path / "b", "a test"):
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "c").write_text("mine")
    assert (tmp_path / "b" / "c").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_folder_with_nothing_but_its_own_is_replaced(tmp_path: Path) -> None:
    _write(tmp_path / "out", a="one", b="two")
    _write(tmp_path / "out", b="three")
    assert sorted(os.listdir(tmp_path / "out")) == [LIST_NAME, "b"]


@pytest.mark.parametrize("name", ["note", "deep/er/note", "empty/", "a"])
def test_a_folder_with_anything_else_is_not(name: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    _write(output, a="one")
    if name.endswith("/"):
        (output / name).mkdir()
    else:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("mine")
    with pytest.raises(UserError, match=f"would replace {output / name}, which efficientsam3 did not write"):
        _write(output, a="two")
    _write(output, overwrite=True, a="two")
    assert (output / "a").read_text() == "two"
    assert name == "a" or (output / name).exists()


def test_a_folder_does_not_take_in_other_outputs(tmp_path: Path) -> None:
    write_own_text(tmp_path / "out" / "m.pt", "weights", "a merged model")
    with pytest.raises(UserError, match=r"m\.pt, which is part of a merged model"):
        _write(tmp_path / "out", a="one")


def test_a_folder_that_cannot_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a folder"):
        check_folder(tmp_path / "file", "a test")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match="holds the current folder"):
        check_folder(Path("."), "a test")


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    _write(tmp_path / "link", a="one")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").read_text() == "one"


def test_an_exit_during_the_swap_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "out", a="one")
    rename, calls = Path.rename, []

    def interrupted(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == 2:
            raise SystemExit(143)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(SystemExit):
        _write(tmp_path / "out", a="two")
    assert (tmp_path / "out" / "a").read_text() == "one"
    assert os.listdir(tmp_path) == ["out"]


def test_what_was_listed_by_another_process_meanwhile_is_own(tmp_path: Path) -> None:
    own = OwnFiles(tmp_path)
    assert own.objection("a") is None
    write_own_text(tmp_path / "a", "one", "a test")
    assert own.owns("a")
    write_own_text(tmp_path / "b", "one", "a test")
    assert own.owns("b")


@given(st.lists(st.sampled_from([b"{", b'"file"', b"null", b"[]", b"\xff", b"\n", b"1", b"{}"]), max_size=20))
def test_a_damaged_list_makes_nothing_the_programs_own(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("list")
    (folder / LIST_NAME).write_bytes(b"".join(parts))
    (folder / "a").write_text("mine")
    assert OwnFiles(folder).objection("a")
    write_own_text(folder / "b", "one", "a test")
    assert OwnFiles(folder).owns("b")
    assert json.loads((folder / LIST_NAME).read_bytes().splitlines()[-1])["file"] == "b"


def test_a_list_that_is_a_fifo_does_not_hang(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    os.mkfifo(tmp_path / LIST_NAME)
    with pytest.raises(UserError, match="a FIFO"):
        check_files([tmp_path / "a"], "a test")
