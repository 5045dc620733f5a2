"""Signals that ask a run to save and end: SIGTERM, and SIGUSR1, by which schedulers announce a pre-emption."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# Named by the launcher: a file whose presence says that everything was saved before the run ended.
SAVED_VARIABLE = "EFFICIENTSAM3_SAVED"


class StopRequest:
    """Whether a signal has asked for the end."""

    def __init__(self) -> None:
        """No signal yet."""
        self.requested = False

    def note(self, _number: int, _frame: FrameType | None) -> None:
        """The handler: it must not do more, since a signal may come at any instruction."""
        self.requested = True


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGUSR1 into a flag while the body runs; Python lets the main thread alone do so."""
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
    """Tell the launcher, where there is one, that everything was saved."""
    if path := os.environ.get(SAVED_VARIABLE):
        Path(path).touch()


def end_by_parent_alone() -> None:
    """In a child that reads data: ignore SIGTERM and SIGUSR1 but from the parent process.

    Schedulers and torchrun send them to every process of a job, and the parent may need the child's data to finish what
    it is at. A child whose parent is gone ends by itself. Where the sender of a signal cannot be told (macOS), SIGTERM
    ends the child.
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
