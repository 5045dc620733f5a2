"""Counts that the environment gives: who this process is among several, and how many threads it has."""

import os
from dataclasses import dataclass

from efficientsam3.runtime.errors import UserError


def count_from(variable: str, default: int, least: int = 0) -> int:
    """The whole number in an environment variable, or the default where it is not set, or empty.

    Raises:
        UserError: it is no number, or below `least`.
    """
    text = os.environ.get(variable, "").strip()
    return _count(variable, text, least) if text else default


def thread_count() -> int:
    """The first number of OMP_NUM_THREADS, which may list one for each level; 0 where it is not set.

    Raises:
        UserError: it is no number.
    """
    text = os.environ.get("OMP_NUM_THREADS", "").strip()
    return _count("OMP_NUM_THREADS", text.split(",")[0].strip(), 1) if text else 0


def _count(variable: str, text: str, least: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= least):
        shown = os.environ[variable][:100]
        raise UserError(f"The environment variable {variable}={shown} is not a whole number from {least} on: unset it.")
    return int(text)


@dataclass(frozen=True)
class Place:
    """A process among its peers, as torchrun tells it."""

    rank: int
    local_rank: int
    world_size: int


def place_among_processes() -> Place:
    """RANK, LOCAL_RANK and WORLD_SIZE; one process alone where they are not set.

    Raises:
        UserError: they do not fit together, or nobody says where the other processes are.
    """
    world_size = count_from("WORLD_SIZE", 1, least=1)
    place = Place(count_from("RANK", 0), count_from("LOCAL_RANK", 0), world_size)
    if place.rank >= world_size:
        raise UserError(
            f"The environment has RANK={place.rank} with WORLD_SIZE={world_size}, but ranks count from 0: start the "
            "processes by torchrun, or unset both."
        )
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if world_size > 1 and missing:
        raise UserError(
            f"The environment has WORLD_SIZE={world_size} but no {' or '.join(missing)}: start the processes by "
            "torchrun, or unset WORLD_SIZE to run in one."
        )
    if world_size > 1 and not 1 <= count_from("MASTER_PORT", 0) <= 65535:
        raise UserError(f"The environment variable MASTER_PORT={os.environ['MASTER_PORT']} is not a port, 1 to 65535.")
    return place
