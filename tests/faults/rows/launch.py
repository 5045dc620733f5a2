"""The launchers of stage1/scripts/: what they are told about processes, machines and folders."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

from faults.fault import Fault, Outcome, Place, Run, refused, works

EXPORT = "bash {checkout}/stage1/scripts/save_stage1_embeddings.sh"
_WHERE = "DATA_PATH={data} OUTPUT=out --resume {sam3} --opts {tiny}"
NODES = "RDZV_ENDPOINT=localhost:29400 GPUS=1"


def _unharmed(*words: str) -> Callable[[Place, Outcome], None]:
    """Refused in a sentence, before anything is written, and nothing of it was run by a shell."""

    def expect(place: Place, outcome: Outcome) -> None:
        refused(*words)(place, outcome)
        assert not [path for path in place.root.rglob("*") if path.name in ("pwned", "out")], outcome

    return expect


def _said(case: str, what: str, arguments: str, *words: str, **options: object) -> Fault:
    """`arguments` of the launcher are refused."""
    return Fault(
        case,
        what,
        f"{EXPORT} {arguments} {_WHERE}",
        _unharmed(*words),
        slow="$(touch" not in arguments,
        options={"program": True, **options},
    )


def _port_in_use(place: Place, run: Run) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = run(f"{EXPORT} MASTER_PORT={port} GPUS=1 {_WHERE}", program=True, timeout=200)
    _unharmed(f"MASTER_PORT={port}", "in use")(place, outcome)


def _nobody_answers(place: Place, run: Run) -> None:
    """This machine is the meeting's host, and the other never comes."""
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    line = f"{EXPORT} NNODES=2 RDZV_ENDPOINT=localhost:{port} GPUS=1 {_WHERE}"
    outcome = run(line, program=True, env={"RDZV_TIMEOUT": "3"}, timeout=100)
    _unharmed("RDZV_TIMEOUT")(place, outcome)


def _nobody_hosts(place: Place, run: Run) -> None:
    line = f"{EXPORT} NNODES=2 RDZV_ENDPOINT=192.0.2.1:29400 GPUS=1 {_WHERE}"  # an address of nobody's: RFC 5737
    outcome = run(line, program=True, env={"RDZV_TIMEOUT": "3"}, timeout=100)
    _unharmed("RDZV_TIMEOUT")(place, outcome)


def _odd_output(place: Place, run: Run) -> None:
    name = """out 'of' "it"; $(touch pwned)"""
    outcome = run(
        ["bash", _script(place), f"DATA_PATH={place.data}", f"OUTPUT={name}", "GPUS=1", *_rest(place)],
        program=True,
        timeout=200,
    )
    works()(place, outcome)
    assert list((place.root / name / "embeddings").glob("rank0-*"))
    assert not (place.root / "pwned").exists()


def _data_from_the_environment(place: Place, run: Run) -> None:
    environment = {"DATA_PATH": f"{place.data}; touch pwned"}
    outcome = run(["bash", _script(place), "OUTPUT=out", "GPUS=1", *_rest(place)], program=True, env=environment)
    _unharmed("touch pwned")(place, outcome)


def _batch_and_more(place: Place, run: Run) -> None:
    arguments = [f"DATA_PATH={place.data}", "OUTPUT=out", "GPUS=1", "BATCH_SIZE=1 --opts SEED 5"]
    _unharmed("--opts SEED 5")(place, run(["bash", _script(place), *arguments, *_rest(place)], program=True))


def _cfg_is_a_command(place: Place, run: Run) -> None:
    arguments = ["CFG=$(touch pwned)", f"DATA_PATH={place.data}", "OUTPUT=out", "GPUS=1"]
    _unharmed("touch pwned")(place, run(["bash", _script(place), *arguments, *_rest(place)], program=True))


def _by_a_relative_path(place: Place, run: Run) -> None:
    folder = place.root / "elsewhere"
    folder.mkdir()
    script = os.path.relpath(_script(place), folder)
    arguments = ["bash", script, f"DATA_PATH={place.data}", "OUTPUT=out", "GPUS=1", *_rest(place)]
    works()(place, run(arguments, program=True, cwd=folder, timeout=200))
    assert list((folder / "out" / "embeddings").glob("rank0-*"))


def _script(place: Place) -> Path:
    return place.checkout / "stage1/scripts/save_stage1_embeddings.sh"


def _rest(place: Place) -> list[str]:
    return ["--resume", str(place.sam3), "--opts", *place.tiny]


REFUSED = [
    _said("Z4", "NNODES is a command in an index", f"'NNODES=a[$(touch pwned)]' {NODES}", "NNODES=a"),
    _said("Z4e", "NNODES is a command in an index of PATH", f"'NNODES=PATH[$(touch pwned)]' {NODES}", "NNODES=PATH"),
    _said("Z4b", "NNODES=abc", f"NNODES=abc {NODES}", "NNODES=abc"),
    _said("Z4c", "NNODES=0", f"NNODES=0 {NODES}", "NNODES=0", timeout=200),
    _said("Z4d", "NNODES=-1", f"NNODES=-1 {NODES}", "NNODES=-1", timeout=200),
    _said("Z5b", "MASTER_PORT=99999", "MASTER_PORT=99999 GPUS=1", "MASTER_PORT=99999", timeout=200),
    _said("launch-h14", "MASTER_PORT=abc", "MASTER_PORT=abc GPUS=1", "MASTER_PORT", timeout=200),
    _said("Z6b", "a host that does not exist", "NNODES=2 RDZV_ENDPOINT=nohost.invalid:29400 GPUS=1", "nohost.invalid"),
    _said("Z6c", "RDZV_ENDPOINT=::::", "NNODES=2 RDZV_ENDPOINT=:::: GPUS=1", "RDZV_ENDPOINT=::::"),
    _said("Z7b", "TMPDIR does not exist", "GPUS=1", "TMPDIR=/nonexistent/tmp", env={"TMPDIR": "/nonexistent/tmp"}),
    *(
        _said(f"launch-h{number}", f"GPUS={gpus}", f"'GPUS={gpus}'", "GPUS=")
        for number, gpus in enumerate(
            ("0", "-1", "abc", "1.5", "1;touch pwned", "$(touch pwned)", "a[$(touch pwned)]", "08", "1 "), start=1
        )
    ),
    _said("launch-h15", "unknown key DATAPATH=", "DATAPATH=x GPUS=1", "DATAPATH is not a key"),
    _said("new-launch-1", "NNODES=3:2", f"NNODES=3:2 {NODES}", "NNODES=3:2"),
    _said("new-launch-2", "NODE_RANK=5 of two", f"NNODES=2 NODE_RANK=5 {NODES}", "NODE_RANK=5"),
    _said("new-launch-3", "RDZV_TIMEOUT=never", "GPUS=1", "RDZV_TIMEOUT=never", env={"RDZV_TIMEOUT": "never"}),
]
ROWS = [
    *REFUSED,
    Fault("Z5c", "MASTER_PORT in use", _port_in_use, slow=True),
    Fault("Z6", "NNODES=2 with an endpoint nobody answers at", _nobody_answers, slow=True),
    Fault("new-launch-4", "NNODES=2 with an address that no packet comes back from", _nobody_hosts, slow=True),
    Fault("launch-h10", "OUTPUT with spaces, quotes, ; and $()", _odd_output, slow=True),
    Fault("launch-h11", "CFG=$(touch pwned)", _cfg_is_a_command, slow=True),
    Fault("launch-h12", "DATA_PATH from the environment, with ;", _data_from_the_environment, slow=True),
    Fault("launch-h13", "BATCH_SIZE=1 --opts SEED 5", _batch_and_more, slow=True),
    Fault("launch-h16", "launcher started from another folder by a relative path", _by_a_relative_path, slow=True),
]
