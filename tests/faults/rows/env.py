"""What a process is given: variables, a home folder, standard streams."""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace

from faults.fault import Fault, Outcome, Place, Run, refused, works


def _without_a_home() -> None:
    import pwd

    def nobody(_: int) -> None:
        raise KeyError("getpwuid(): uid not found")

    os.environ.pop("HOME", None)
    pwd.getpwuid = nobody  # type: ignore[assignment]


def _stdout_is_full() -> None:
    _stdout_is(os.open("/dev/full", os.O_WRONLY))


def _stdout_is_closed() -> None:
    """As `| head -1`, which has read its line."""
    reading, writing = os.pipe()
    os.close(reading)
    _stdout_is(writing)


def _stdout_is(descriptor: int) -> None:
    os.dup2(descriptor, 1)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)


def _ends_quietly(_: Place, outcome: Outcome) -> None:
    assert not outcome.hung, outcome
    assert outcome.code in (0, 1, 141), outcome  # 1: as rich ends, 141: as SIGPIPE does
    assert outcome.err == "", outcome


def _an_image_that_the_store_lacks(place: Place) -> None:
    shutil.copy(place.image, place.images / "sa_999.jpg")
    assert place.store.is_dir()


def _table_in_ascii(place: Place, run: Run) -> None:
    shutil.copy(place.image, place.images / "sa_é.jpg")
    (place.data / "annotations/train/sa_é.json").write_text("[", encoding="utf-8")
    works(code=1)(place, run("data check {data}", fresh=True, env={"PYTHONIOENCODING": "ascii"}))


def _name_that_is_no_text(place: Place, run: Run) -> None:
    folder = place.root / "images"
    folder.mkdir()
    shutil.copy(place.image, os.fsencode(folder) + b"/\xff.jpg")
    outcome = run(
        "predict {merged} images --point 9 9 --out masks",
        fresh=True,
        env={"PYTHONIOENCODING": "utf-8:strict"},
        timeout=200,
    )
    works("1 object")(place, outcome)


def _address_nobody_listens_at(place: Place, run: Run) -> None:
    """The meeting is bounded; here by a wait that is made shorter than its 10 minutes."""
    group = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    outcome = run("{export}", env=group, inject=_two_seconds_to_meet, timeout=30)
    refused("MASTER_ADDR", "localhost:1")(place, outcome)


def _two_seconds_to_meet() -> None:
    from datetime import timedelta

    from efficientsam3.runtime import distributed

    for name in ("_MEETING_TIMEOUT", "_TIMEOUT"):
        if hasattr(distributed, name):
            setattr(distributed, name, timedelta(seconds=2))


def _nothing_written(*words: str) -> Callable[[Place, Outcome], None]:
    def expect(place: Place, outcome: Outcome) -> None:
        refused(*words)(place, outcome)
        assert not (place.root / "teacher").exists(), outcome

    return expect


_ROWS = [
    Fault("N1", "RANK=abc", "{export}", _nothing_written("RANK=abc"), options={"env": {"RANK": "abc"}}),
    Fault(
        "N2",
        "WORLD_SIZE=2 RANK=0 without MASTER_ADDR, as some clusters set",
        "{export}",
        _nothing_written("WORLD_SIZE=2", "MASTER_ADDR"),
        options={"env": {"WORLD_SIZE": "2", "RANK": "0"}},
    ),
    Fault("N3", "WORLD_SIZE=0", "{export}", _nothing_written("WORLD_SIZE=0"), options={"env": {"WORLD_SIZE": "0"}}),
    Fault(
        "N4",
        "OMP_NUM_THREADS=abc: predict with ONNX",
        "predict {onnx} {image} --point 9 9 --out masks",
        refused("OMP_NUM_THREADS=abc"),
        options={"env": {"OMP_NUM_THREADS": "abc"}, "fresh": True},
    ),
    Fault(
        "N5",
        "no HOME, and a user without a name: data check",
        "data check {data}",
        works("16"),
        options={"inject": _without_a_home},
    ),
    Fault(
        "N6",
        "stdout is a full device: compare",
        "compare --student es_ev_s",
        refused("No space left on device"),
        options={"inject": _stdout_is_full},
    ),
    Fault(
        "N7b",
        "stdout closed early: store export-missing-list",
        "store export-missing-list {store} --data-path {data}",
        _ends_quietly,
        _an_image_that_the_store_lacks,
        options={"inject": _stdout_is_closed},
    ),
    Fault(
        "env-h1",
        "stdout closed early: compare",
        "compare --student es_ev_s",
        _ends_quietly,
        options={"inject": _stdout_is_closed},
    ),
    Fault("N8", "stdout takes ASCII only: the table of data check", _table_in_ascii),
    Fault("N8b", "stdout takes text only, and an image's name is none: predict", _name_that_is_no_text),
    Fault(
        "env-h2",
        "TMPDIR does not exist: merge",
        "merge --student-ckpt {student} --sam3-ckpt {sam3} --output out.pt",
        works(),
        options={"env": {"TMPDIR": "/nonexistent/tmp"}},
    ),
    Fault("new-env-1", "MASTER_ADDR at which nobody listens", _address_nobody_listens_at),
    Fault(
        "new-env-2",
        "RANK=2 among WORLD_SIZE=2",
        "{train}",
        refused("RANK=2", "WORLD_SIZE=2"),
        options={"env": {"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}},
    ),
    Fault(
        "new-env-3",
        "MASTER_PORT=99999",
        "{train}",
        refused("MASTER_PORT=99999"),
        options={"env": {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "99999"}},
    ),
]
# The others lose no data.
ORDINARY = {"N1", "N5", "N7b", "env-h2"}
ROWS = [replace(row, slow=row.case not in ORDINARY) for row in _ROWS]
