import fcntl
import os
import time
from pathlib import Path

import pytest

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.locks import locked


def test_a_second_holder_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    path = tmp_path / "new" / ".lock"
    holder = rf"OUTPUT x is in use .*process {os.getpid()} on "
    with locked(path, "OUTPUT x"), pytest.raises(UserError, match=holder), locked(path, "OUTPUT x"):
        pass
    with locked(path, "OUTPUT x"):
        pass


def test_a_child_that_outlives_its_parent_does_not_keep_the_lock(tmp_path: Path) -> None:
    read, write = os.pipe()
    parent = os.fork()
    if not parent:
        with locked(tmp_path / ".lock", "it"):
            child = os.fork()
            if not child:
                time.sleep(60)
            os.write(write, str(child).encode())
            os._exit(0)  # as killed: nothing is undone
    os.waitpid(parent, 0)
    child = int(os.read(read, 20))
    with locked(tmp_path / ".lock", "it"):
        os.kill(child, 9)


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int, _how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=r"cannot be locked \(No locks available\)"), locked(tmp_path / ".lock", "it"):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = pytest.raises(UserError, match="Cannot write to OUTPUT y: File exists")
    with refused, locked(tmp_path / "file" / ".lock", "OUTPUT y"):
        pass
