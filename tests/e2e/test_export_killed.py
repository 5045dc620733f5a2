"""Exports that are killed, told to end, or run out of disk, and then simply run again."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from e2e.processes import ROOT, copy_photographs, environment, marked

RECORD = 4 + 2 * 64 * 16 * 16
Records = dict[str, bytes]


class Export:
    """The export command on one dataset, as a group of processes that bear a mark in their environment."""

    def __init__(self, root: Path, teacher: Path) -> None:
        self.output, self.data, self._teacher = root / "output", root / "data", teacher

    @property
    def store(self) -> Path:
        return self.output / "embeddings"

    def start(self, processes: int) -> tuple["subprocess.Popen[str]", str]:
        """Start it on so many processes, under torchrun unless it is 0."""
        mark = uuid.uuid4().hex
        runner = ["torchrun", "--standalone", "--nproc_per_node", str(processes)] if processes else [sys.executable]
        flags = ["--cfg", "stage1/configs/teacher/sam_vit_huge_sa1b.yaml", "--resume", self._teacher]
        flags += ["--data-path", self.data, "--output", self.output, "--batch-size", 1]
        flags += ["--opts", "DATA.IMG_SIZE", 224, "DISTILL.EMBED_SIZE", 16, "DISTILL.EMBED_DIM", 64]
        command = [*runner, "stage1/save_embedding_stage1.py", *map(str, flags), "DATA.NUM_WORKERS", "1"]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(mark),
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        return process, mark

    def finish(self, processes: int, code: int = 0) -> str:
        """Run it to its end; returns what it said on stderr."""
        process, _ = self.start(processes)
        _, errors = process.communicate(timeout=240)
        assert process.returncode == code, errors
        return errors

    def size(self) -> int:
        """Bytes of values so far."""
        return sum(path.stat().st_size for path in self.store.glob("rank*-values.bin"))

    def committed(self) -> Records:
        """Each whole key line's record, read as anyone would who knows the published format."""
        records = Records()
        for keys in sorted(self.store.glob("rank*-keys.txt")):
            values = keys.with_name(keys.name.replace("-keys.txt", "-values.bin")).read_bytes()
            for index, key in enumerate(keys.read_text().split("\n")[:-1]):
                record = values[index * RECORD : (index + 1) * RECORD]
                assert len(record) == RECORD
                assert records.setdefault(key, record) == record
        return records


def kill_all(process: "subprocess.Popen[str]", mark: str) -> None:
    """SIGKILL to the launcher, its workers, and their data loaders."""
    while living := [*marked(mark)]:
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    process.communicate()


def wait_for_records(export: Export, process: "subprocess.Popen[str]") -> None:
    before, deadline = export.size(), time.monotonic() + 120
    while export.size() == before and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.fixture(scope="module")
def make_export(tmp_path_factory, tiny_sam3_path, photographs_path):
    """Builds exports of so many images: nine photographs under many names."""

    def make(count: int) -> Export:
        root = tmp_path_factory.mktemp("export")
        copy_photographs(photographs_path, root / "data", train=count - count // 5, val=count // 5)
        return Export(root, tiny_sam3_path)

    return make


@pytest.mark.parametrize(
    ("moments", "images"),
    [
        # Enough images that the kills find the export at work, on a fast machine too.
        pytest.param(3, 300, marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
        pytest.param(20, 600, marks=[pytest.mark.slow, pytest.mark.timeout(2400)]),
    ],
)
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds descendants in /proc")
def test_killed_at_random_moments_it_ends_equal_to_an_undisturbed_run(make_export, moments, images) -> None:
    export, chance, known, interrupted = make_export(images), random.Random(moments), Records(), 0
    for moment in range(moments):
        process, mark = export.start(chance.choice([1, 2, 3]))
        if moment % 4 < 3:  # while it writes; else at any time, also before it has begun
            wait_for_records(export, process)
            time.sleep(chance.uniform(0, 2.5))
        else:
            time.sleep(chance.uniform(0, 15))
        interrupted += process.poll() is None
        kill_all(process, mark)
        found = export.committed()
        assert known.items() <= found.items()
        known = found
    assert interrupted > moments // 2
    export.finish(2)
    disturbed = export.committed()
    assert known.items() <= disturbed.items()
    assert len(disturbed) == images
    # Elsewhere, on the same pictures, without a disturbance.
    export.output = export.output.with_name("undisturbed")
    export.finish(0)
    assert export.committed() == disturbed


@pytest.mark.parametrize("processes", [0, 2])
def test_sigterm_ends_it_cleanly_and_nothing_of_it_stays(make_export, processes) -> None:
    export = make_export(300)
    process, mark = export.start(processes)
    wait_for_records(export, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (143 if processes == 0 else 1) or process.returncode < 0, errors
    assert marked(mark) == []
    # What was in the queue is written and committed on the way out: nothing torn is left.
    assert 0 < len(export.committed()) < 300
    assert export.size() == len(export.committed()) * RECORD


def test_a_full_disk_stops_it_with_one_sentence_and_the_next_run_goes_on(make_export) -> None:
    export = make_export(20)
    limited = f'ulimit -f {5 * RECORD // 1024 + 1}; exec "$@"'
    process_start = subprocess.Popen

    def under_limit(command, **options):
        return process_start(["bash", "-c", limited, "bash", *command], **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", under_limit)
        errors = export.finish(0, code=2)
    assert "Cannot write to" in errors.splitlines()[-1]
    assert "make room and run the same command again" in errors.splitlines()[-1]
    before = export.committed()
    assert len(before) <= 5
    export.finish(0)
    after = export.committed()
    assert before.items() <= after.items()
    assert len(after) == 20
