"""What test_distributed.py runs on two processes."""

import time
from pathlib import Path

import torch
import torch.distributed as dist

from two_processes import one_of_two


def fail_beside_a_waiting_peer(rank: int, folder: str, port: int) -> None:
    """Raise on one process while the other waits for it; each writes down what it saw, and after how long."""
    dist.destroy_process_group = lambda: time.sleep(100)  # as NCCL's does while a peer waits in a collective
    started = time.monotonic()
    try:
        with one_of_two(rank, port):
            if rank == 0:
                raise ValueError("only here")
            dist.all_reduce(torch.ones(1))
    except (ValueError, RuntimeError) as error:
        Path(folder, str(rank)).write_text(f"{time.monotonic() - started} {error}")
