"""The frame around a long step: processes, one run at a time in OUTPUT, logging, config.json."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import torch

from efficientsam3.runtime.device import DeviceName
from efficientsam3.runtime.distributed import Process, on_main, process_group
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import write_text
from efficientsam3.runtime.locks import locked
from efficientsam3.runtime.logging import start_logging, stop_logging

_DEAD_READER = "DataLoader worker"  # how PyTorch's error begins, which it raises wherever the main thread is by then


class RunSettings(Protocol):
    """The part of a configuration that this module needs."""

    def model_dump_json(self, *, indent: int) -> str:
        """The whole configuration as JSON."""
        ...


@contextmanager
def run_step(device: DeviceName, output_dir: Path, writes: bool = True) -> Iterator[Process]:
    """Join the other processes and log to `output_dir`.

    Args:
        device: to compute on.
        output_dir: OUTPUT.
        writes: whether more than the log is written there, so that no other such run may use it meanwhile.

    Raises:
        UserError: the device is not available, another run uses the folder, or it cannot be written to; or the GPU's
            memory does not suffice, or a process that reads images has died.
    """
    with process_group(device) as process, ExitStack() as stack:
        if writes:
            on_main(process, lambda: stack.enter_context(locked(*_lock(output_dir))))
        start_logging(output_dir, process.rank)
        try:
            yield process
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"The GPU has too little memory ({' '.join(str(error).split())[:200]}): halve the batch size "
                "(BATCH_SIZE=...) and double --accumulation-steps, or give --use-checkpoint, if this is a training; "
                "docs/gpu.md has the batch that fits each student and card."
            ) from error
        except RuntimeError as error:
            if not str(error).startswith(_DEAD_READER):
                raise
            raise UserError(
                f"A process that reads images has died ({' '.join(str(error).split())}), often for want of memory: "
                "make DATA.NUM_WORKERS or the batch size smaller, and run the same command again."
            ) from error
        finally:
            stop_logging()


def check_unused(output_dir: Path) -> None:
    """Check that no run uses an output folder, without changing anything.

    Raises:
        UserError: another run uses it.
    """
    path, what = _lock(output_dir)
    if path.exists():
        with locked(path, what):
            pass


def write_config(config: RunSettings, output_dir: Path) -> None:
    """Write `config.json`, once nothing refuses the run that it describes."""
    write_text(output_dir / "config.json", config.model_dump_json(indent=2) + "\n")


def _lock(output_dir: Path) -> tuple[Path, str]:
    return output_dir / ".run.lock", f"OUTPUT {output_dir}"
