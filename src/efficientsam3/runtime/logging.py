"""Logging: `log_rankN.txt` for every process, the console for the first."""

import logging
import sys
from contextlib import suppress
from pathlib import Path

from rich.logging import RichHandler

from efficientsam3.runtime.console import Console
from efficientsam3.runtime.errors import UserError

LOGGER_NAME = "efficientsam3"
console = Console(stderr=True)
if not console.is_terminal:
    console.width = 200  # a log file need not keep to 80 columns
_logs: list[Path] = []


class _LogFile(logging.FileHandler):
    """A log file; where it cannot be written, the run goes on, and says so once."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            console.print(f"{self.baseFilename} cannot be written: {error.strerror}")

    def close(self) -> None:
        with suppress(OSError):  # it has been named
            super().close()


def start_logging(output_dir: Path, rank: int) -> None:
    """Log this process to `output_dir/log_rank<rank>.txt`, appending; rank 0 also to the console.

    Raises:
        UserError: the folder cannot be written to.
    """
    logger = logging.getLogger(LOGGER_NAME)
    stop_logging()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    path = output_dir / f"log_rank{rank}.txt"
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        to_file: logging.Handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(f"Cannot write to OUTPUT {output_dir}: {error.strerror}; choose another folder.") from error
    _logs.append(path)
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(to_file)
    if rank == 0:
        logger.addHandler(RichHandler(console=console, show_path=False, markup=False, rich_tracebacks=False))


def last_log() -> Path | None:
    """The file of the last `start_logging` in this process."""
    return _logs[-1] if _logs else None


def stop_logging() -> None:
    """Undo `start_logging`."""
    logger = logging.getLogger(LOGGER_NAME)
    logger.setLevel(logging.NOTSET)
    logger.propagate = True
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
