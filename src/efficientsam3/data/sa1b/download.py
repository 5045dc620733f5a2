"""Downloading SA-1B's tars in parallel, by the links that Meta issues."""

from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event, Lock

from efficientsam3.data.sa1b.fetch import DownloadError, Retries, fetch_tar
from efficientsam3.data.sa1b.links import Subset, read_links, select_links
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.locks import locked
from efficientsam3.runtime.progress import progress_bar

_PERCENT = 100


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
        missing = {name: link for name, link in wanted.items() if not (output / name).exists()}
        with progress_bar("Tars, %", _PERCENT * len(missing), visible=bool(missing)) as advance:
            failed = _fetch_all(missing, output, workers, retries or Retries(), advance)
    if failed:
        raise UserError(f"{len(failed)} of {len(missing)} downloads failed, the first of them {failed[min(failed)]}")
    return len(missing)


def _fetch_all(
    missing: dict[str, str], output: Path, workers: int, retries: Retries, advance: Callable[[int], None]
) -> dict[str, str]:
    """Fetch all; returns the failures by name. An error of the local disk ends it at once."""
    failed: dict[str, str] = {}
    stop = Event()
    with ThreadPoolExecutor(workers) as pool:
        futures = {
            pool.submit(fetch_tar, name, link, output, retries, _Percent(advance, stop)): name
            for name, link in missing.items()
        }
        try:
            for future in as_completed(futures):
                try:
                    future.result()
                except DownloadError as error:
                    failed[futures[future]] = str(error)
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
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
