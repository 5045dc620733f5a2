"""Faults and bad inputs: what each is, how it is made, which command meets it, and what must come of it.

`listed.tsv` lists what was tried on the first release, and whether it held then. The tables in `rows/` have one `Fault`
for each of its lines, under the line's `case`, and more (`new-AREA-N`). `not_tried.tsv` gives the reason of each that
has none. All of them, and a count of them: `make faults`. Those of one table, and one of them:

    pytest -n 0 -m "slow or not slow" tests/faults/test_store.py
    pytest -n 0 -m "slow or not slow" tests/faults/test_store.py -k "test_fault[S13]"

The rows know nothing of the package but its commands, so that they can try another checkout of it:

    python -m faults.bases DIR                     # in tests/: make the files that the rows spoil, by this checkout
    FAULTS_BASES=DIR FAULTS_CHECKOUT=OTHER PYTHONPATH=OTHER/src pytest --confcutdir=tests/faults -n 0 \
        -m "slow or not slow" tests/faults/test_store.py

A command runs in a process forked from one that has imported everything, with a limit on its time and its memory.
"""

import contextlib
import fnmatch
import hashlib
import multiprocessing
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from faults.bases import BASES, CHECKOUT, TINY

NOBODY = 65534  # root is allowed everything, so that file modes are tried as this user
_FORKS = multiprocessing.get_context("forkserver")
# Before Python 3.14 its server looks for what it preloads in PYTHONPATH alone, and silently goes on without.
_TESTS = str(Path(__file__).parents[1])
if _TESTS not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    os.environ["PYTHONPATH"] = os.pathsep.join([*os.environ.get("PYTHONPATH", "").split(os.pathsep), _TESTS]).strip(":")
_FORKS.set_forkserver_preload(["faults.preload"])


@dataclass(frozen=True)
class Outcome:
    """What came of a command.

    Attributes:
        code: its exit code, negative after a signal; None where it had to be killed for its time.
        out: what it wrote to stdout.
        err: what it wrote to stderr.
        seconds: how long it ran.
        peak: most memory that its main process held at a time, in bytes, as far as was seen.
    """

    code: int | None
    out: str
    err: str
    seconds: float
    peak: int

    @property
    def hung(self) -> bool:
        """Whether it had to be killed."""
        return self.code is None

    @property
    def sentence(self) -> str:
        """The last line on stderr."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        return lines[-1] if lines else ""

    def __str__(self) -> str:
        state = "killed: it did not end" if self.hung else f"exit code {self.code}"
        return f"{state} after {self.seconds:.1f} s\n--- stdout\n{self.out[-3000:]}\n--- stderr\n{self.err[-5000:]}"


class Place:
    """A folder of a row's own, with copies of what it may spoil, made where they are first asked for.

    Attributes:
        root: the folder; commands run in it.
    """

    def __init__(self, root: Path, find_base: Callable[[str], Path]) -> None:
        """`find_base` returns the path of a base, see `BASES`."""
        self.root = root
        self._find_base = find_base

    def __getattr__(self, name: str) -> Path:
        """A copy of the base `name`, see `BASES`: `place.data`, `place.teacher`, `place.sam3`..."""
        if name not in BASES:
            raise AttributeError(f"{name} is not one of {', '.join(BASES)}")
        base = self._find_base(name)
        copy = self.root / base.name
        if not os.path.lexists(copy):
            (shutil.copytree if base.is_dir() else shutil.copyfile)(base, copy)
            for sidecar in base.parent.glob(f"{base.name}.[jm]*") if base.is_file() else ():
                shutil.copyfile(sidecar, self.root / sidecar.name)
        return copy

    @property
    def store(self) -> Path:
        """The embeddings of `teacher`, which is the OUTPUT of an export: two shards, of 9 and 7 images."""
        return self.teacher / "embeddings"

    @property
    def images(self) -> Path:
        """The training images of `data`."""
        return self.data / "images" / "train"

    @property
    def image(self) -> Path:
        """One of them."""
        return sorted(self.images.glob("*.jpg"))[0]

    @property
    def checkout(self) -> Path:
        """The checkout whose commands are tried."""
        return CHECKOUT

    @property
    def tiny(self) -> list[str]:
        """KEY VALUE pairs that fit the small SAM3, for the end of a line of `--opts`."""
        return list(TINY)

    @property
    def export(self) -> list[str]:
        """The line that exported `teacher`; more KEY VALUE pairs may follow it."""
        cfg = CHECKOUT / "stage1/configs/teacher/sam_vit_huge_sa1b.yaml"
        paths = ["--data-path", self.data, "--output", self.root / "teacher", "--resume", self.sam3]
        return [str(part) for part in ("export", "--cfg", cfg, *paths, "--batch-size", 2, "--opts", *TINY)]

    @property
    def train(self) -> list[str]:
        """The line that trained `training`, for two epochs; more KEY VALUE pairs may follow it."""
        cfg = CHECKOUT / "stage1/configs/es_ev_s.yaml"
        paths = ["--data-path", self.data, "--output", self.root / "training"]
        keys = ["DISTILL.TEACHER_EMBED_PATH", self.store, "TRAIN.EPOCHS", 2, "TRAIN.WARMUP_EPOCHS", 0]
        flags = ["--batch-size", 2, "--pretrained", "false", "--opts", *TINY, *keys]
        return [str(part) for part in ("train", "--cfg", cfg, *paths, *flags)]

    def fill(self, command: str | Sequence[object]) -> list[str]:
        """The words of a command; {name} in it stands for that attribute of the place, here or as a word of its own."""
        words: list[str] = []
        for word in shlex.split(command) if isinstance(command, str) else [str(part) for part in command]:
            if word in ("{tiny}", "{export}", "{train}"):
                words += getattr(self, word[1:-1])
            else:
                words.append(word.format_map(_Attributes(self)) if isinstance(command, str) else word)
        return words


class _Attributes(dict[str, object]):
    def __init__(self, place: Place) -> None:
        self._place = place

    def __missing__(self, name: str) -> object:
        return getattr(self._place, name)


Expect = Callable[[Place, Outcome], None]
Run = Callable[..., Outcome]


@dataclass(frozen=True)
class Fault:
    """One row.

    Attributes:
        case: the line of `listed.tsv`, or `new-AREA-N`.
        what: what is wrong, and which command meets it.
        command: arguments of `efficientsam3`, see `Place.fill`; or a function of place and run, which runs several and
            asserts what comes of them.
        expect: what must come of the command, `refused`, `works` or a function that asserts it.
        spoil: makes the fault in the place's copies.
        slow: takes seconds, or is not about losing data; left to `make faults`.
        options: how to run it, see `Runner.__call__`.
    """

    case: str
    what: str
    command: str | Sequence[object] | Callable[[Place, Run], None]
    expect: Expect | None = None
    spoil: Callable[[Place], object] | None = None
    slow: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def attempt(self, place: Place) -> None:
        """Make the fault, run the command, and assert what must come of it."""
        if self.spoil is not None:
            self.spoil(place)
        run = Runner(place)
        if callable(self.command):
            self.command(place, run)
            return
        words = place.fill(self.command)
        before = snapshot(place.root)
        outcome = run(words, **self.options)
        assert self.expect is not None, f"{self.case} expects nothing"
        if isinstance(self.expect, refused):
            self.expect.compare(before, snapshot(place.root), outcome)
        self.expect(place, outcome)


class Runner:
    """Runs commands in a place."""

    def __init__(self, place: Place) -> None:
        """Commands run in the folder of `place`."""
        self._place = place

    def __call__(
        self,
        command: str | Sequence[object],
        *,
        fresh: bool = False,
        program: bool = False,
        env: dict[str, str | None] | None = None,
        unprivileged: bool = False,
        inject: Callable[[], None] | None = None,
        timeout: float = 60,
        memory_gb: float = 4,
        signals: Sequence[tuple[float, int]] = (),
        cwd: Path | None = None,
    ) -> Outcome:
        """Run a command to its end.

        Args:
            command: see `Place.fill`.
            fresh: start a new Python for it instead of forking one that has imported everything.
            program: its first word is a program, such as bash, instead of a command of `efficientsam3`.
            env: changes to the environment; None removes a variable.
            unprivileged: run as a user who owns the place's files and is subject to their modes.
            inject: called in the process before the command: makes functions of the system fail.
            timeout: seconds after which it is killed; `Outcome.hung` is True then.
            memory_gb: limit of each process's memory, in 2^30 bytes.
            signals: pairs of seconds after the start and the signal sent to the process then.
            cwd: where it runs instead of in the place's folder.
        """
        words = self._place.fill(command)
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "1000"}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            environment.pop(name, None)
        for name, value in (env or {}).items():
            environment.pop(name, None)
            if value is not None:
                environment[name] = value
        if unprivileged and os.geteuid() == 0:
            environment["HOME"] = str(self._place.root)
            for path in (self._place.root, *self._place.root.rglob("*")):
                os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        setup = _Setup(environment, cwd or self._place.root, unprivileged, memory_gb, inject)
        streams = [self._place.root.parent / f"{self._place.root.name}.{name}" for name in ("out", "err")]
        for stream in streams:
            stream.unlink(missing_ok=True)
            stream.touch()
            stream.chmod(0o666)
        process = _Program(words, setup, streams, program) if fresh or program else _Fork(words, setup, streams)
        code, seconds, peak = _wait(process, timeout, sorted(signals))
        out, err = (stream.read_text(encoding="utf-8", errors="replace") for stream in streams)
        for stream in streams:
            stream.unlink()
        return Outcome(code, out, err, seconds, peak)


@dataclass(frozen=True)
class _Setup:
    environment: dict[str, str]
    cwd: Path
    unprivileged: bool
    memory_gb: float
    inject: Callable[[], None] | None

    def enter(self) -> None:
        """In the new process: its limits, its user, its folder."""
        os.chdir(self.cwd)
        limit = int(self.memory_gb * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if self.unprivileged and os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)


class _Fork:
    def __init__(self, words: list[str], setup: _Setup, streams: list[Path]) -> None:
        self._process = _FORKS.Process(target=_run_forked, args=(words, setup, streams))
        self._process.start()
        self.pid = self._process.pid or 0

    def poll(self) -> int | None:
        return self._process.exitcode


class _Program:
    def __init__(self, words: list[str], setup: _Setup, streams: list[Path], program: bool) -> None:
        python = [sys.executable, "-c", "from efficientsam3.cli import main; raise SystemExit(main())"]
        with streams[0].open("wb") as out, streams[1].open("wb") as err:
            self._process = subprocess.Popen(
                words if program else [*python, *words],
                env=setup.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=setup.enter,  # noqa: PLW1509, no other thread is here
            )
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.poll()


def _run_forked(words: list[str], setup: _Setup, streams: list[Path]) -> None:
    os.setsid()
    sys.stdout.flush()
    sys.stderr.flush()
    for number, path in ((0, Path(os.devnull)), (1, streams[0]), (2, streams[1])):
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(setup.environment)
    setup.enter()
    multiprocessing.set_start_method(None, force=True)  # a child's own children would be started as it was
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if setup.inject is not None:
        setup.inject()
    from efficientsam3.cli import main

    try:
        code = main(words)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.exit(code)


def _wait(process: _Fork | _Program, timeout: float, signals: list[tuple[float, int]]) -> tuple[int | None, float, int]:
    started = time.monotonic()
    peak = 0
    while (code := process.poll()) is None:
        seconds = time.monotonic() - started
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    peak = max(peak, int(line.split()[1]) * 1024)
        if signals and seconds >= signals[0][0]:
            os.kill(process.pid, signals.pop(0)[1])
        if seconds > timeout:
            break
        time.sleep(0.02)
    seconds = time.monotonic() - started
    # Its workers too, whether it ended or not: none may outlive a test.
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    while process.poll() is None:
        time.sleep(0.02)
    return code, seconds, peak


@dataclass(frozen=True, init=False)
class refused:
    """Exit code 2 and one sentence that has all the words, in any case of letters; every file stays as it was.

    Args:
        words: what the sentence must have.
        changes: patterns of paths in the place's folder that may change or appear; logs may.
    """

    words: tuple[str, ...]
    changes: tuple[str, ...]

    def __init__(self, *words: str, changes: Sequence[str] = ()) -> None:
        object.__setattr__(self, "words", words)
        object.__setattr__(self, "changes", (*changes, "*.log", "*/log_rank*.txt", "*.lock"))

    def __call__(self, _: Place, outcome: Outcome) -> None:
        assert not outcome.hung, outcome
        assert outcome.code == 2, outcome
        assert "Traceback (most recent call last)" not in outcome.err, outcome
        for word in self.words:
            assert word.lower() in outcome.sentence.lower(), f"{word!r} is not in the sentence\n{outcome}"

    def compare(self, before: dict[str, str], after: dict[str, str], outcome: Outcome) -> None:
        """Every file that was there is there still, with its content."""
        changed = [
            path
            for path, content in before.items()
            if after.get(path) != content and not any(fnmatch.fnmatch(path, pattern) for pattern in self.changes)
        ]
        assert not changed, f"changed or removed: {', '.join(changed)}\n{outcome}"


@dataclass(frozen=True, init=False)
class works:
    """Exit code 0, or `code`, without a traceback; stdout and stderr together have all the words."""

    words: tuple[str, ...]
    code: int

    def __init__(self, *words: str, code: int = 0) -> None:
        object.__setattr__(self, "words", words)
        object.__setattr__(self, "code", code)

    def __call__(self, _: Place, outcome: Outcome) -> None:
        assert not outcome.hung, outcome
        assert outcome.code == self.code, outcome
        assert "Traceback (most recent call last)" not in outcome.err, outcome
        for word in self.words:
            assert word.lower() in (outcome.out + outcome.err).lower(), f"{word!r} was not written\n{outcome}"


def snapshot(root: Path) -> dict[str, str]:
    """Path in `root` -> a digest of its content, of all files, links and folders there."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        status = path.lstat()
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif not path.is_file():
            found[name] = f"mode {status.st_mode >> 12:o}"  # the type
        elif status.st_size > 2 * 512 * status.st_blocks + 4096:
            found[name] = f"sparse, {status.st_size} bytes"
        else:
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "blake2b").hexdigest()
    return found


def each(rows: Sequence[Fault]) -> Callable[..., None]:
    """The test of a table: each row under its case's name."""
    assert len({row.case for row in rows}) == len(rows), "a case has two rows"
    marked = [pytest.param(row, id=row.case, marks=[pytest.mark.slow] if row.slow else []) for row in rows]

    @pytest.mark.parametrize("fault", marked)
    def test_fault(fault: Fault, place: Place) -> None:
        fault.attempt(place)

    return test_fault
