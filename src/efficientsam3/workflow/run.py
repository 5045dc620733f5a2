"""Running the steps: each is printed before it starts, can be interrupted, and resumes where it stopped."""

import shlex
import signal
from collections.abc import Sequence
from pathlib import Path

from efficientsam3.data.layouts import DATASETS, guess_dataset
from efficientsam3.runtime.console import Console
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.launch import run_alone, run_torchrun
from efficientsam3.workflow.request import DistillRequest
from efficientsam3.workflow.settings import write_configs
from efficientsam3.workflow.steps import Record, Step, best_checkpoint, closing_lines, first_steps, last_steps


class StoppedError(Exception):
    """A signal asked for the end; the current step has ended, and saved if it saves at all."""


def distill(request: DistillRequest) -> bool:
    """Run everything that is not complete.

    The same request resumes where an interrupted one stopped: embedding and training determine what is left, the other
    steps are skipped if `steps.json` says that they are complete for the same checkpoint.

    Returns:
        whether everything is complete; if not, SIGTERM or SIGUSR1 asked for the end.

    Raises:
        UserError: something is wrong with the request, or a step failed, which has said why.
    """
    console = Console(soft_wrap=True)
    dataset = request.dataset or guess_dataset(request.images)
    annotated = DATASETS[dataset].has_annotations(request.images, "val")
    record = Record(request.out)
    write_configs(request, dataset, annotated)
    try:
        for step in first_steps(request):
            _run(step, (), record, console)
        checkpoint = best_checkpoint(request.student_dir)
        for step in last_steps(request, checkpoint, annotated):
            _run(step, (checkpoint,), record, console)
    except StoppedError:
        console.print("\nasked to end: the same command continues from here")
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
    code = run_command(step.command, step.processes)
    if code != 0:
        raise UserError(
            f"The step {step.name} returned {code}, for the reason above: correct that, and run the same command again."
        )
    if not step.resumes:
        record.add(step, inputs)


def run_command(command: Sequence[str], processes: int = 1) -> int:
    """Run a command of this environment, on several processes by torchrun; see `runtime.launch`.

    Returns:
        its exit code.

    Raises:
        StoppedError: a signal asked for the end, and the command has ended.
        KeyboardInterrupt: Ctrl-C did.
    """
    outcome = run_alone(command) if processes == 1 else run_torchrun(processes, command[1:])
    if signal.SIGINT in outcome.signals:
        raise KeyboardInterrupt
    if outcome.signals:
        raise StoppedError
    return outcome.code
