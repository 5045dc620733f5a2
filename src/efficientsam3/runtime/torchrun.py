"""torchrun, which says in one sentence why it ended, and returns its workers' exit code.

    python -m efficientsam3.runtime.torchrun TORCHRUN_ARGUMENT...

By itself it ends in a traceback of its own and 1, whatever the workers said and returned.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence

from efficientsam3.runtime.endings import run_to_the_end
from efficientsam3.runtime.errors import UserError

# Seconds in which the others have to end once a process has failed, where torchrun gives 30. They have nothing to save
# in it: they wait for the one that failed, on NCCL without noticing anything.
_PATIENCE = 20


def main(arguments: Sequence[str]) -> int:
    """Run torchrun.

    Returns:
        0; the exit code of the worker that failed first, 128 + the number where a signal ended it; or 2 where the
        machines did not find each other.
    """
    try:
        return run_to_the_end("torchrun", lambda: _run(arguments))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1


def _run(arguments: Sequence[str]) -> None:
    from torch.distributed.elastic.multiprocessing.api import PContext, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.run import main as torchrun

    if "LOGLEVEL" not in os.environ:
        # Its lines about each worker, and about each one's end, say what is said here in one.
        for name in list(logging.root.manager.loggerDict):
            if name.startswith("torch.distributed"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
    PContext.close.__defaults__ = (None, _PATIENCE)
    try:
        torchrun(list(arguments))
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from error
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        code = failure.exitcode
        if code < 0:
            name = signal.Signals(-code).name
            print(
                f"torchrun: Process {failure.local_rank} was ended by {name}, and the others with it; if nobody did "
                "that, there was not enough memory. The same command goes on from what was saved.",
                file=sys.stderr,
            )
            raise SystemExit(128 - code) from error
        raise SystemExit(code) from error  # the worker has said why
    except (RendezvousError, TimeoutError) as error:
        raise UserError(
            f"The machines did not find each other at RDZV_ENDPOINT in time ({error}): check that NNODES are started, "
            "that all reach it, and that nothing else uses its port; RDZV_TIMEOUT=SECONDS waits longer."
        ) from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
