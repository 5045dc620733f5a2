"""`python data/reorg_sa1b.py` as a user runs it, killed and started again."""

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "data/reorg_sa1b.py"
PAIRS_PER_TAR = 1000


def jpeg(number: int) -> bytes:
    return b"\xff\xd8\xff\xda" + f"picture {number} ".encode() * 200 + b"\xff\xd9"


def write_tar(path: Path, first: int, count: int = PAIRS_PER_TAR) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + count):
            annotation = b'{"image": {"image_id": %d}, "annotations": []}' % number
            for name, data in ((f"sa_{number}.jpg", jpeg(number)), (f"sa_{number}.json", annotation)):
                info = tarfile.TarInfo(f"{path.stem}/{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def start(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*arguments: object, cwd: Path) -> tuple[int, str]:
    process = start(*arguments, cwd=cwd)
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err
    return process.returncode, out + err


def files(root: Path) -> dict[str, bytes]:
    """All that a run leaves, but the lock."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != ".reorg.lock"
    }


def pictures(root: Path) -> list[str]:
    return [name for split in ("train", "val") for name in _names(root / "images" / split) if name.endswith(".jpg")]


def _names(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def kill_midway(output: Path, more_than: int, *arguments: object, cwd: Path) -> int:
    """SIGKILL once there are more pictures than that; returns how many there are when all has come to rest."""
    process = start(*arguments, cwd=cwd)
    while len(pictures(output)) <= more_than:
        assert process.poll() is None, "it was through before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 30
    count = -1
    while count != (count := len(pictures(output))):  # its workers notice and end
        assert time.monotonic() < deadline, "its workers go on"
        time.sleep(0.3)
    return count


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_twice_and_resumed_equals_one_undisturbed_run(tmp_path: Path, workers: int) -> None:
    for number in range(3):
        write_tar(tmp_path / f"tars/sa_{number:06}.tar", number * PAIRS_PER_TAR)
    with tarfile.open(tmp_path / "tars/sa_000003.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("../../evil.jpg"))
    arguments = ["--source", "tars", "--workers", workers]

    total = 3 * PAIRS_PER_TAR
    first = kill_midway(tmp_path / "killed", 100, *arguments, "--output", "killed", cwd=tmp_path)
    assert first < total
    second = kill_midway(tmp_path / "killed", first + 100, *arguments, "--output", "killed", cwd=tmp_path)
    assert first < second < total
    code, output = finish(*arguments, "--output", "killed", cwd=tmp_path)
    assert code == 1, "something was skipped"
    assert f"{total - second} pairs put in place" in output

    code, output = finish(*arguments, "--output", "undisturbed", cwd=tmp_path)
    assert (code, f"{total} pairs put in place, 0" in output) == (1, True)
    assert files(tmp_path / "killed") == files(tmp_path / "undisturbed")
    assert len(pictures(tmp_path / "killed")) == total
    assert sorted(os.listdir(tmp_path)) == ["killed", "tars", "undisturbed"]


def test_without_arguments_it_works_in_place(tmp_path: Path) -> None:
    folder = tmp_path / "data/sa-1b/sa_000020"
    write_tar(tmp_path / "sa_000020.tar", 0, 30)
    with tarfile.open(tmp_path / "sa_000020.tar") as tar:
        tar.extractall(folder.parent, filter="data")
    code, output = finish(cwd=tmp_path)
    assert (code, "30 pairs put in place" in output) == (0, True)
    assert len(pictures(tmp_path / "data/sa-1b")) == 30
    assert _names(folder) == []


def test_killed_while_moving_loses_no_pair(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", 0)
    with tarfile.open(tmp_path / "a.tar") as tar:
        tar.extractall(tmp_path / "data/sa-1b", filter="data")
    kill_midway(tmp_path / "data/sa-1b", 50, "--workers", 1, cwd=tmp_path)
    code, _ = finish("--workers", 1, cwd=tmp_path)
    assert code == 0
    for number in range(PAIRS_PER_TAR):
        name = f"sa_{number}.jpg"
        (picture,) = (tmp_path / "data/sa-1b/images").glob(f"*/{name}")
        assert picture.read_bytes() == jpeg(number)
        split = picture.parent.name
        assert (tmp_path / f"data/sa-1b/annotations/{split}/sa_{number}.json").is_file()


def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    code, output = finish("--source", "absent", cwd=tmp_path)
    assert code == 2
    assert "--source absent does not exist" in output
    assert list(tmp_path.iterdir()) == []
