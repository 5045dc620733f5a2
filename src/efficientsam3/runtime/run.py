"""The frame around a long step: processes, logging, config.json."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from efficientsam3.runtime.device import DeviceName
from efficientsam3.runtime.distributed import Process, process_group
from efficientsam3.runtime.files import write_text
from efficientsam3.runtime.logging import start_logging, stop_logging


class RunSettings(Protocol):
    """The part of a configuration that this module needs."""

    @property
    def DEVICE(self) -> DeviceName:
        """Which device to compute on."""
        ...

    def model_dump_json(self, *, indent: int) -> str:
        """The whole configuration as JSON."""
        ...


@contextmanager
def run_step(config: RunSettings, output_dir: Path, write: bool = True) -> Iterator[Process]:
    """Join the other processes and log to `output_dir`; rank 0 writes `config.json` there unless `write` is False."""
    with process_group(config.DEVICE) as process:
        start_logging(output_dir, process.rank)
        try:
            if write and process.is_main:
                write_text(output_dir / "config.json", config.model_dump_json(indent=2) + "\n")
            yield process
        finally:
            stop_logging()
