"""Signals that ask a run to save and stop: SIGTERM, and SIGUSR1, which schedulers send before a pre-emption."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# Environment variable set by the launcher: path of a file to create once everything is saved.
SAVED_VARIABLE = "EFFICIENTSAM3_SAVED"


class StopRequest:
    """Whether a signal has asked the run to stop."""

    def __init__(self) -> None:
        """No signal yet."""
        self.requested = False

    def note(self, _number: int, _frame: FrameType | None) -> None:
        """The handler: it must not do more, since a signal may come at any instruction."""
        self.requested = True


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGUSR1 into a flag while the body runs; in the main thread only, as Python requires."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    with handled(_SIGNALS, request.note):
        yield request


@contextmanager
def handled(numbers: Sequence[int], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle some signals by `handler` while the body runs, in the main thread; afterwards as before."""
    before = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    finally:
        for number, former in zip(numbers, before, strict=True):
            signal.signal(number, former)


def report_saved() -> None:
    """Report to the launcher, if there is one, that everything was saved."""
    if path := os.environ.get(SAVED_VARIABLE):
        Path(path).touch()


def end_by_parent_alone() -> None:
    """In a child that reads data: ignore SIGUSR1, and SIGTERM from any process but the parent.

    Schedulers and torchrun send them to every process of a job, while the parent may need the child's data to finish
    its step. A child whose parent is gone ends by itself. Where a signal's sender is unknown (macOS), SIGTERM ends the
    child.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None or not hasattr(signal, "sigwaitinfo"):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_by, args=(parent.pid,), daemon=True).start()


def _end_by(parent: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
