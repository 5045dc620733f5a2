"""What a training records: the log, `metrics.jsonl` and TensorBoard."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch.utils.tensorboard import SummaryWriter

from efficientsam3.checkpoints.training import METRICS_NAME
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import write_text
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.train.objective import Averages

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(LOGGER_NAME)


class Tracker:
    """Keeps the figures of every epoch; the main process writes them."""

    def __init__(self, output_dir: Path, lines: list[Averages]) -> None:
        """Go on after `lines`, the figures of the epochs before."""
        self._output = output_dir
        self.lines = lines
        self._board: SummaryWriter | None = None

    def start(self, step: int) -> None:
        """Write from here on, on the main process; what TensorBoard was shown beyond `step` is dropped."""
        if getattr(threading.excepthook, "func", None) is not _report_thread:
            threading.excepthook = partial(_report_thread, threading.excepthook)
        with self._writing():
            self._board = SummaryWriter(str(self._output), purge_step=step + 1)
        self._write()

    def note_step(self, step: int, figures: Averages) -> None:
        """Show figures of one step in TensorBoard."""
        if self._board is not None:
            with self._writing():
                for name, value in figures.items():
                    self._board.add_scalar(f"step/{name}", value, step)

    def record(self, epoch: int, step: int, figures: Averages) -> None:
        """Note one epoch's figures."""
        self.lines.append({"epoch": epoch, "step": step, **figures})
        logger.info("epoch %d: %s", epoch, ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
        self._write()
        if self._board is not None:
            with self._writing():
                for name, value in figures.items():
                    self._board.add_scalar(name, value, step)
                self._board.flush()

    def show(self, step: int, figure: "Figure") -> None:
        """Show a figure of features in TensorBoard."""
        if self._board is not None:
            with self._writing():
                self._board.add_figure("features", figure, step)

    def close(self) -> None:
        """Finish the TensorBoard file."""
        if self._board is not None:
            with self._writing():
                self._board.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """TensorBoard writes in a thread, whose error the next call raises."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or " ".join(str(error).split())
            raise UserError(
                f"Cannot write TensorBoard's file in {self._output}: {reason}; make room, and run the same command "
                "again."
            ) from error

    def _write(self) -> None:
        if self._board is not None:
            write_text(self._output / METRICS_NAME, "".join(f"{json.dumps(line)}\n" for line in self.lines))


def _report_thread(report: Callable[[threading.ExceptHookArgs], object], arguments: threading.ExceptHookArgs) -> None:
    """Leave out the traceback of TensorBoard's thread on a full disk, which `Tracker` reports."""
    if not (issubclass(arguments.exc_type, OSError) and type(arguments.thread).__module__.startswith("tensorboard")):
        report(arguments)
