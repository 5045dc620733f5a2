"""Functions called on two processes at once, forked from one that has imported everything and computed nothing."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from efficientsam3.cli import main
from efficientsam3.runtime.distributed import Process, process_group

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["efficientsam3.train.run", "efficientsam3.embed.run", "efficientsam3.checkpoints.sam3"])


def fork_two(function: Callable[..., None], *arguments: Any) -> None:
    """Call a module's function of rank, arguments and port on two processes; both have to end well."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    processes = [_FORKS.Process(target=function, args=(rank, *arguments, port)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(280)
    assert [process.exitcode for process in processes] == [0, 0]


@contextmanager
def one_of_two(rank: int, port: int) -> Iterator[Process]:
    """What `fork_two`'s functions work in: this process among the two."""
    _take_place(rank, port)
    with process_group("cpu") as process:
        yield process


def run_as_one_of_two(rank: int, arguments: list[str], port: int) -> None:
    """Run a command as a launcher would on each process, without the seconds that a new one imports for."""
    _take_place(rank, port)
    # Or those that read images would be started as this process was, by a server that imports everything again.
    multiprocessing.set_start_method(None, force=True)
    assert main(arguments) == 0


def _take_place(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
