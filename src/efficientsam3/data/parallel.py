"""Work spread over processes, with one progress count; no worker outlives its parent."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from typing import Any, TypeVar

Unit = TypeVar("Unit")
Result = TypeVar("Result")
Advance = Callable[[int], None]
_REPORT_SECONDS = 0.1


class Cancelled(Exception):
    """Another process failed, so this one stops."""


def map_processes(
    function: Callable[[Unit, Advance], Result], units: Iterable[Unit], workers: int, advance: Advance
) -> Iterator[Result]:
    """Yield `function(unit, advance)` for each unit, as each is finished.

    Args:
        function: at a module's top level; calls `advance` with the number of items just done, often.
        units: what to work on; picklable.
        workers: number of processes; 1 stays in this process.
        advance: called in this process with what the workers have done.
    """
    if workers == 1:
        yield from (function(unit, advance) for unit in units)
        return
    # Forking would copy the locks of a progress bar's thread in whatever state they are.
    context = get_context("spawn")
    counts, stop = context.SimpleQueue(), context.Event()
    with ProcessPoolExecutor(workers, context, _start_worker, (counts, stop)) as pool:
        try:
            remaining = iter(units)
            # A few waiting units keep all workers busy; a million would fill the memory.
            pending = {pool.submit(_call, function, unit) for unit in islice(remaining, 4 * workers)}
            while pending:
                done, pending = wait(pending, timeout=_REPORT_SECONDS, return_when=FIRST_COMPLETED)
                while not counts.empty():
                    advance(counts.get())
                pending |= {pool.submit(_call, function, unit) for unit in islice(remaining, len(done))}
                for future in done:
                    yield future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        while not counts.empty():
            advance(counts.get())


class _Reporter:
    """Sends counts to the parent at intervals, since the pipe between them is small."""

    def __init__(self, counts: Any, stop: Any) -> None:
        self.counts, self.stop = counts, stop
        self.count, self.sent = 0, time.monotonic()

    def __call__(self, count: int) -> None:
        self.count += count
        if time.monotonic() - self.sent >= _REPORT_SECONDS:
            self.flush()
            if self.stop.is_set():
                raise Cancelled

    def flush(self) -> None:
        self.counts.put(self.count)
        self.count, self.sent = 0, time.monotonic()


_reporter: _Reporter


def _start_worker(counts: Any, stop: Any) -> None:
    global _reporter  # noqa: PLW0603  (a pool's initialiser has no other place to leave things)
    _reporter = _Reporter(counts, stop)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """End this worker when its parent is killed; a pool's workers would otherwise run for ever."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _call(function: Callable[[Any, Advance], Result], unit: Any) -> Result:
    result = function(unit, _reporter)
    _reporter.flush()
    return result
