"""Running the steps: each printed before it starts, interruptible, and begun again where it stopped."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from efficientsam3.runtime.errors import UserError
from efficientsam3.workflow.request import DistillRequest
from efficientsam3.workflow.settings import guess_dataset, is_annotated, write_configs
from efficientsam3.workflow.steps import Record, Step, best_checkpoint, closing_lines, first_steps, last_steps

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StoppedError(Exception):
    """A signal asked for the end; the step under way has ended, and saved where it saves."""


def distill(request: DistillRequest) -> bool:
    """Run everything that is not complete.

    The same request goes on where an interrupted one stopped: the export and the training find out by themselves what
    is left, the other steps are left out where `steps.json` says that they are complete for the same checkpoint.

    Returns:
        whether all is complete; where not, SIGTERM or SIGUSR1 has asked for the end.

    Raises:
        UserError: something is wrong with the request; or a step failed, which has said why.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True)
    dataset = request.dataset or guess_dataset(request.images)
    annotated = is_annotated(request.images, dataset)
    write_configs(request, dataset, annotated)
    record = Record(request.out)
    try:
        for step in first_steps(request):
            _run(step, (), record, console)
        checkpoint = best_checkpoint(request.student_dir)
        for step in last_steps(request, checkpoint, annotated):
            _run(step, (checkpoint,), record, console)
    except StoppedError:
        console.print("\nasked to end: the same command goes on from there")
        return False
    console.print()
    for line in closing_lines(request, dataset, annotated):
        console.print(line)
    return True


def _run(step: Step, inputs: Sequence[Path], record: Record, console: Console) -> None:
    if not step.resumes and record.has(step, inputs):
        console.print(f"\n{step.name}: complete")
        return
    console.print(f"\n{step.name}", style="bold")
    console.print(f"$ {shlex.join(step.command)}", style="cyan")
    code = run_command(step.command)
    if code != 0:
        raise UserError(
            f"The step {step.name} returned {code}, for the reason above: mend that, and give the same command again."
        )
    if not step.resumes:
        record.add(step, inputs)


def run_command(command: Sequence[str]) -> int:
    """Run a command of this environment; SIGTERM and SIGUSR1 go on to it as SIGTERM.

    Returns:
        its exit code.

    Raises:
        StoppedError: a signal came; the command has ended.
    """
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    with subprocess.Popen(command, env={**os.environ, "PATH": path}) as process, _forwarding(process) as stops:
        code = process.wait()
    if stops:
        raise StoppedError
    return code


@contextmanager
def _forwarding(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Yields the list of signals that came."""
    stops: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        stops.append(number)
        process.terminate()

    before = [signal.signal(number, forward) for number in _SIGNALS]
    try:
        yield stops
    finally:
        for number, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(number, handler)
