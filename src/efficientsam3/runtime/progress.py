"""Progress bars with ETA, on the console that the log lines share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from efficientsam3.runtime.logging import console


@contextmanager
def progress_bar(description: str, total: int, visible: bool = True) -> Iterator[Callable[[int], None]]:
    """Show a bar while the body runs; yields a function to call with the number of items just done.

    Nothing is drawn where the console is not a terminal.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not (visible and console.is_terminal)) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count: progress.advance(task, count)
