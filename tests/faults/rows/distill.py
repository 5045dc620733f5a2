"""`distill`: its arguments, and its records of what is complete."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from faults.fault import Fault, Outcome, Place, Run, refused, works

DISTILL = "distill --images {data} --sam3 {sam3} --student es_ev_s --out out --epochs 1 --batch-size 4 --workers 0"
SCRATCH = f"{DISTILL} --pretrained false"


def _in_this_process() -> None:
    """The steps run one after the other in the process of `distill`, which saves the start of each."""
    from efficientsam3.cli import main
    from efficientsam3.workflow import run

    def run_command(command: Sequence[str], *_: object) -> int:
        return main(list(command[1:]))

    run.run_command = run_command


def _best_is(content: str, *words: str) -> Callable[[Place, Run], None]:
    """`best.json` of a finished `distill` has been spoilt, and the same command is given again."""

    def command(place: Place, run: Run) -> None:
        best = place.root / "out/student/best.json"
        works()(place, run(SCRATCH, inject=_in_this_process, timeout=200))
        model = (place.root / "out/efficient_sam3.pt").read_bytes()
        content_before = best.read_text()
        best.write_text(content)
        refused("best.json", *words)(place, run(SCRATCH, inject=_in_this_process, timeout=200))
        assert (place.root / "out/efficient_sam3.pt").read_bytes() == model
        best.write_text(content_before)
        works("complete")(place, run(SCRATCH, inject=_in_this_process, timeout=200))

    return command


# Both at once, each with its steps in its own process; the larger of their exit codes.
_BOTH = """
import os, sys
from efficientsam3.cli import main
from efficientsam3.workflow import run
run.run_command = lambda command, *_: main(list(command[1:]))
children = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        os._exit(main(sys.argv[1:]))
    children.append(child)
raise SystemExit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def _two_at_once(place: Place, run: Run) -> None:
    """One may refuse what the other uses; in the end, the same command says that everything is complete."""
    outcome = run([sys.executable, "-c", _BOTH, *place.fill(SCRATCH)], program=True, timeout=250)
    assert outcome.code in (0, 2), outcome
    assert "Traceback (most recent call last)" not in outcome.out + outcome.err, outcome
    works("complete")(place, run(SCRATCH, inject=_in_this_process, timeout=200))
    assert json.loads((place.root / "out/steps.json").read_text()).keys() >= {"plan", "merge"}
    works("object")(place, run("predict out/efficient_sam3.pt {image} --point 9 9 --out masks"))


def _steps_are(content: str) -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        (place.root / "out").mkdir()
        (place.root / "out/steps.json").write_text(content)

    return spoil


def _out_is_a_file(place: Place) -> None:
    (place.root / "out").write_text("mine")


def _nothing_ran(*words: str) -> Callable[[Place, Outcome], None]:
    def expect(place: Place, outcome: Outcome) -> None:
        refused(*words)(place, outcome)
        assert not Path(place.root, "out/teacher").exists(), outcome

    return expect


_ROWS = [
    Fault("W1", "--pretrained [x", f"{DISTILL} --pretrained '[x'", _nothing_ran("[x")),
    Fault("W2", "--pretrained 2024-13-45", f"{DISTILL} --pretrained 2024-13-45", _nothing_ran("2024-13-45")),
    Fault("W9", "steps.json cut short", SCRATCH, refused("steps.json"), _steps_are('{"merge": {"comm')),
    Fault("W10", "steps.json is a list", SCRATCH, refused("steps.json"), _steps_are("[]")),
    Fault("U-best1", "best.json cut short: distill again", _best_is('{"path": "ckpt')),
    Fault("distill-h7", "best.json names ../../x: distill again", _best_is('{"path": "../../x"}')),
    Fault("distill-h1", "--pretrained 5", f"{DISTILL} --pretrained 5", _nothing_ran()),
    Fault("distill-h2", "--workers -1", f"{SCRATCH} --workers -1", _nothing_ran("workers")),
    Fault("distill-h3", "--seed -1", f"{SCRATCH} --seed -1", _nothing_ran("seed")),
    Fault("distill-h4", "--codec nonsense", f"{SCRATCH} --codec nonsense", _nothing_ran("codec")),
    Fault("distill-h5", "--out is a file", SCRATCH, refused("out"), _out_is_a_file),
    Fault("distill-h6", "--device cuda without one", f"{SCRATCH} --device cuda", refused("step plan")),
    Fault("distill-h8", "two into one --out at once", _two_at_once),
]
# The others lose no data, or take their time.
ORDINARY = {"W9", "distill-h5"}
ROWS = [replace(row, slow=row.case not in ORDINARY) for row in _ROWS]
