import os
import stat
from pathlib import Path

import pytest

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import (
    atomic_path,
    open_regular,
    read_bytes,
    require_file,
    sha256_file,
    write_json,
    write_text,
)


def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="boom"), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("boom")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_content_appears_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_an_unusable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write .*file/a"):
        write_text(tmp_path / "file" / "a", "")


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_require_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Thing .*absent is not a file: do this"):
        require_file(tmp_path / "absent", "Thing", "do this")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, kind in (("fifo", "a FIFO"), ("link", "a FIFO"), ("zero", "a device"), (".", "a folder")):
        with pytest.raises(OSError, match=kind), open_regular(tmp_path / name):
            pass
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "good").symlink_to("file")
    with open_regular(tmp_path / "good") as file:
        assert file.read() == b"abc"


def test_more_than_the_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert read_bytes(tmp_path / "file", 3) == b"abc"
    os.truncate(tmp_path / "file", 200 << 30)
    with pytest.raises(OSError, match="214748364800 bytes, more than the 3"):
        read_bytes(tmp_path / "file", 3)


def test_a_file_never_replaces_a_fifo_or_a_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("fifo", "null"):
        with pytest.raises(UserError, match=f"Cannot write .*{name}: it is a"):
            write_text(tmp_path / name, "")
    assert sorted(os.listdir(tmp_path)) == ["fifo", "null"]
