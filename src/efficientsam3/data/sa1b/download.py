"""Downloading SA-1B's tars in parallel, by the links that Meta issues."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread

from efficientsam3.data.sa1b.fetch import CancelledError, DownloadError, Retries, fetch_tar
from efficientsam3.data.sa1b.links import Subset, read_links, select_links
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.locks import locked
from efficientsam3.runtime.progress import progress_bar

_PERCENT = 100
_GRACE_SECONDS = 1.0  # for what is being written when it is to stop


def download(
    links: Path, output: Path, subset: Subset = "all", workers: int = 4, retries: Retries | None = None
) -> int:
    """Download the missing tars. The same call continues an interrupted run.

    Args:
        links: Meta's file.
        output: folder for the tars.
        subset: which tars.
        workers: simultaneous downloads.
        retries: patience with servers.

    Returns:
        How many tars were downloaded.

    Raises:
        UserError: the links are not usable, the disk is full, or some downloads failed (after all others are done).
    """
    wanted = select_links(read_links(links), subset)
    if workers < 1:
        raise UserError(f"--workers {workers} is too few: give 1 or more.")
    with locked(output / ".download.lock", f"--output {output}"):
        missing = {name: link for name, link in wanted.items() if not (output / name).is_file()}
        with progress_bar("Tars, %", _PERCENT * len(missing), visible=bool(missing)) as advance:
            failed = _fetch_all(missing, output, workers, retries or Retries(), advance)
    if failed:
        raise UserError(f"{len(failed)} of {len(missing)} downloads failed, the first of them {failed[min(failed)]}")
    return len(missing)


def _fetch_all(
    missing: dict[str, str], output: Path, workers: int, retries: Retries, advance: Callable[[int], None]
) -> dict[str, str]:
    """Fetch all; returns the failures by name. An error of the local disk, or a signal, ends it at once."""
    failed: dict[str, str] = {}
    todo, done = SimpleQueue[tuple[str, str]](), SimpleQueue[tuple[str, Exception | None]]()
    for item in missing.items():
        todo.put(item)
    stop = Event()

    def work() -> None:
        with suppress(Empty):
            while not stop.is_set():
                name, link = todo.get_nowait()
                try:
                    fetch_tar(name, link, output, retries, _Percent(advance, stop), stop)
                except Exception as error:
                    done.put((name, error))
                else:
                    done.put((name, None))

    # Not a pool, which waits for its threads: a silent server holds one for a minute, and `stop` cannot wake it.
    threads = [Thread(target=work, daemon=True) for _ in range(min(workers, len(missing)))]
    for thread in threads:
        thread.start()
    try:
        for _ in missing:
            name, error = done.get()
            if isinstance(error, DownloadError):
                failed[name] = str(error)
            elif error is not None:
                raise error
    finally:
        stop.set()
        deadline = time.monotonic() + _GRACE_SECONDS
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
    return failed


class _Percent:
    """Turns shares of one file into whole percents; raises in its thread once all downloads are to stop."""

    _lock = Lock()

    def __init__(self, advance: Callable[[int], None], stop: Event) -> None:
        self._advance, self._stop = advance, stop
        self._share, self._shown = 0.0, 0

    def __call__(self, share: float) -> None:
        if self._stop.is_set():
            raise CancelledError
        self._share += share
        percent = min(int(self._share * _PERCENT), _PERCENT)
        if percent > self._shown:
            with self._lock:
                self._advance(percent - self._shown)
            self._shown = percent
