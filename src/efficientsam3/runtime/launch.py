"""Running a command, alone or under torchrun, so that signals reach the processes that can act on them.

    python -m efficientsam3.runtime.launch PROCESSES TORCHRUN_ARGUMENT...

On SIGTERM, torchrun gives its workers 30 s and returns 1 even if they saved and ended well; SIGUSR1 kills it. This
launcher sends both signals to the workers themselves, which save and end in their own time.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from efficientsam3.runtime.device import usable_cores
from efficientsam3.runtime.endings import run_to_the_end
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.signals import SAVED_VARIABLE, handled

_STOPS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def own_path() -> str:
    """PATH for a command to be run, on which this interpreter's programs come first."""
    return os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int  # exit code; also 0 where the command reported that everything is saved
    signals: tuple[int, ...]  # those that were passed on to it

    @property
    def exit_code(self) -> int:
        """The exit code as shells have it: 128 and its number for a signal."""
        return self.code if self.code >= 0 else 128 - self.code


def run_alone(command: Sequence[str], variables: Mapping[str, str] | None = None) -> Outcome:
    """Run a command of this environment, changed by `variables`; signals that ask it to stop are passed on as SIGTERM.

    Raises:
        UserError: TMPDIR is not a folder.
    """
    return _run(command, workers=False, variables=variables)


def run_torchrun(processes: int, arguments: Sequence[str]) -> Outcome:
    """Run torchrun; signals that ask it to stop are passed on to its workers.

    Args:
        processes: number of workers on this machine; they share its cores unless OMP_NUM_THREADS is set.
        arguments: torchrun's arguments.

    Raises:
        UserError: TMPDIR is not a folder.
    """
    # SIGUSR1 would kill torchrun itself, which ignores it from its start; the workers install their own handlers.
    torchrun = (sys.executable, "-m", "efficientsam3.runtime.torchrun")
    ignoring = ("sh", "-c", 'trap "" USR1; exec "$0" "$@"', *torchrun, *arguments)
    return _run(ignoring, workers=True, threads=max(1, usable_cores() // processes))


def _run(
    command: Sequence[str], workers: bool, threads: int | None = None, variables: Mapping[str, str] | None = None
) -> Outcome:
    _check_temporary_folder()
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "saved"
        environment = {**os.environ, **(variables or {}), "PATH": own_path(), SAVED_VARIABLE: str(saved)}
        if threads is not None:  # torchrun gives each worker one thread by default
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        with _forwarding(workers) as (signals, started):
            # Workers get a process group of their own: what a terminal or scheduler sends to this one arrives by way of
            # this process alone.
            process = subprocess.Popen(command, env=environment, process_group=0 if workers else None)
            started.append(process.pid)
            with process:
                code = process.wait()
        return Outcome(0 if saved.exists() else code, tuple(signals))


def _check_temporary_folder() -> None:
    """Python takes another folder where TMPDIR is none, which nobody would look into."""
    folder = os.environ.get("TMPDIR")
    if folder and not (os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)):
        raise UserError(f"TMPDIR={folder} is not a folder that you may write to: make it, or unset TMPDIR.")


@contextmanager
def _forwarding(workers: bool) -> Iterator[tuple[list[int], list[int]]]:
    """Pass signals on while the body runs.

    Yields a list of the signals that came, and a list to which the body adds the process that they go to. The handlers
    are installed before that process starts, so that no signal can end this one and leave the other running.
    """
    came: list[int] = []
    started: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        came.append(number)
        for process in started:
            if number == signal.SIGINT:
                _send(process, number)
            elif not workers:
                _send(process, signal.SIGTERM)
            else:
                # SIGHUP comes when a terminal or job ends; workers handle SIGTERM and SIGUSR1 only.
                wanted = signal.SIGUSR1 if number == signal.SIGUSR1 else signal.SIGTERM
                children = _children(process)
                for child in children:
                    _send(child, wanted)
                if not children:  # none has been started yet
                    _send(process, signal.SIGTERM)

    # Ctrl-C reaches a command in this process group by itself.
    with handled((*_STOPS, signal.SIGINT) if workers else _STOPS, forward):
        yield came, started


def _children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task")
    if tasks.is_dir():
        return [int(child) for task in tasks.glob("*/children") for child in task.read_text().split()]
    found = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True, check=False)
    return [int(child) for child in found.stdout.split()]


def _send(process: int, number: int) -> None:
    try:
        os.kill(process, number)
    except ProcessLookupError:  # it has ended
        return


def _main(processes: str = "", *arguments: str) -> int:
    codes: list[int] = []

    def work() -> None:
        if not re.fullmatch("[1-9][0-9]{0,5}", processes):
            raise UserError(f"{processes or 'Nothing'} is not a number of processes: give 1 or more.")
        codes.append(run_torchrun(int(processes), arguments).exit_code)

    return run_to_the_end("efficientsam3.runtime.launch", work) or codes[0]


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
