"""`efficientsam3 train` of which one process fails in a step, while the others wait for it: FAILURE=RANK:STEP:HOW."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from efficientsam3.cli import main
from efficientsam3.train.loop import Trainer

KILLED, RAISED, STUCK = "killed", "raised", "stuck"


def _fail(rank: str, step: str, how: str) -> None:
    take = Trainer._take_step
    mine = os.environ.get("RANK") == rank

    def failing(trainer: Trainer, group: Any) -> Any:
        if trainer.step < int(step):
            return take(trainer, group)
        note = Path(os.environ["NOTES"], "failed")
        if not mine and how == STUCK:
            time.sleep(1000)  # as NCCL: it notices no peer's end, and a signal's handler runs only after it
        if not mine:
            return take(trainer, group)
        time.sleep(1)  # so that the others are in the collective
        note.touch()
        if how == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        raise ArithmeticError("only here")

    Trainer._take_step = failing  # type: ignore[method-assign]


if __name__ == "__main__":
    if "RANK" in os.environ:  # not in the check before
        if "FAILURE" in os.environ:
            _fail(*os.environ["FAILURE"].split(":"))
        code = main(["train", *sys.argv[1:]])
        Path(os.environ["NOTES"], f"ended-{os.environ['RANK']}-{code}").touch()
        sys.exit(code)
    sys.exit(main(["train", *sys.argv[1:]]))
