"""What a training records: the log, `metrics.jsonl` and TensorBoard."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from torch.utils.tensorboard import SummaryWriter

from efficientsam3.checkpoints.training import METRICS_NAME
from efficientsam3.runtime.files import write_text
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.train.metrics import read_metrics
from efficientsam3.train.objective import Averages

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(LOGGER_NAME)


class Tracker:
    """Keeps the figures of every epoch; the main process writes them."""

    def __init__(self, output_dir: Path, is_main: bool, epoch: int, step: int) -> None:
        """Continue at an epoch and a step; what an interrupted run wrote beyond them is dropped."""
        self._path = output_dir / METRICS_NAME
        self.lines: list[Averages] = []
        if self._path.exists() and self._path.stat().st_size:  # it is empty until the first epoch has ended
            self.lines = [line for line in read_metrics(self._path) if line["epoch"] < epoch]
        self._board = SummaryWriter(str(output_dir), purge_step=step + 1) if is_main else None
        self._write()

    def note_step(self, step: int, figures: Averages) -> None:
        """Show figures of one step in TensorBoard."""
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(f"step/{name}", value, step)

    def record(self, epoch: int, step: int, figures: Averages) -> None:
        """Note one epoch's figures."""
        self.lines.append({"epoch": epoch, "step": step, **figures})
        logger.info("epoch %d: %s", epoch, ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
        self._write()
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()

    def show(self, step: int, figure: "Figure") -> None:
        """Show a figure of features in TensorBoard."""
        if self._board is not None:
            self._board.add_figure("features", figure, step)

    def close(self) -> None:
        """Finish the TensorBoard file."""
        if self._board is not None:
            self._board.close()

    def _write(self) -> None:
        if self._board is not None:
            write_text(self._path, "".join(f"{json.dumps(line)}\n" for line in self.lines))
