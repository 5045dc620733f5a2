"""Where the processes of a run meet: one machine's by themselves, several machines' at an address that all reach."""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.request import shorten

_MOST = 1_000_000  # processes, machines and seconds
_PORTS = 65_535
_ENDPOINT = re.compile(r"(?P<host>[\w.-]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?", re.ASCII)
KEYS = ("GPUS", "MASTER_PORT", "NNODES", "NODE_RANK", "RDZV_BACKEND", "RDZV_ENDPOINT", "RDZV_ID", "RDZV_TIMEOUT")


@dataclass(frozen=True)
class Rendezvous:
    """What torchrun has to know, checked."""

    processes: int  # on this machine
    world_size: int  # at least, on all machines together
    arguments: tuple[str, ...]  # of torchrun


def plan_rendezvous(values: Mapping[str, str]) -> Rendezvous:
    """Check what is said about processes and machines.

    Args:
        values: texts by their names, see `KEYS`; an empty one is not given.

    Raises:
        UserError: one of them is wrong, the port is taken, or no machine has the endpoint's name.
    """
    processes = _number(values, "GPUS", 8, 1, "a number of processes")
    nodes = values.get("NNODES") or "1"
    least, most = _nodes(nodes)
    arguments = ["--nnodes", nodes, "--nproc_per_node", str(processes)]
    port = _number(values, "MASTER_PORT", 29500, 1, "a port", _PORTS)
    node = _number(values, "NODE_RANK", 0, 0, "the number of a machine, counted from 0,", most - 1)
    timeout = _number(values, "RDZV_TIMEOUT", 600, 1, "a number of seconds")
    if values.get("RDZV_BACKEND") or values.get("RDZV_ENDPOINT"):
        endpoint = values.get("RDZV_ENDPOINT") or "localhost:29400"
        _check_endpoint(endpoint)
        arguments += ["--rdzv_backend", values.get("RDZV_BACKEND") or "c10d", "--rdzv_endpoint", endpoint]
        arguments += ["--rdzv_id", values.get("RDZV_ID") or "efficientsam3"]
        arguments += ["--rdzv_conf", f"join_timeout={timeout},read_timeout={timeout}"]
    elif most > 1:
        raise UserError(
            f"NNODES={nodes} needs RDZV_ENDPOINT=HOST:PORT, a machine and free port that all of them reach."
        )
    elif values.get("MASTER_PORT"):
        _check_free(port)
        arguments += ["--master_port", str(port), "--node_rank", str(node)]
    else:
        arguments += ["--standalone"]  # a free port, so that two runs on one machine do not collide
    return Rendezvous(processes, processes * least, tuple(arguments))


def _number(values: Mapping[str, str], name: str, default: int, least: int, what: str, most: int = _MOST) -> int:
    text = values.get(name) or str(default)
    if not re.fullmatch(r"0|[1-9][0-9]{0,6}", text) or not least <= int(text) <= most:
        raise UserError(f"{name}={shorten(text)} is not {what}: give {least} to {most}.")
    return int(text)


def _nodes(text: str) -> tuple[int, int]:
    """Fewest and most machines: N, or MIN:MAX as torchrun has it."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})(:([1-9][0-9]{0,5}))?", text)
    least, most = (int(match[1]), int(match[3] or match[1])) if match else (1, 0)
    if least > most:
        raise UserError(f"NNODES={shorten(text)} is not a number of machines: give 1 or more, or MIN:MAX.")
    return least, most


def _check_endpoint(endpoint: str) -> None:
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None or int(match["port"] or 0) > _PORTS:
        raise UserError(
            f"RDZV_ENDPOINT={shorten(endpoint)} is not HOST:PORT: give a machine that all reach and a port from 1 to "
            f"{_PORTS}, such as host0:29400."
        )
    host = match["host"].strip("[]")
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"RDZV_ENDPOINT={shorten(endpoint)}: no machine is found by the name {shorten(host)} ({error}); give a "
            "name or address that all machines reach."
        ) from error


def _check_free(port: int) -> None:
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise UserError(
            f"MASTER_PORT={port} cannot be listened on ({error.strerror}): give another, or leave MASTER_PORT out, and "
            "a free one is taken."
        ) from error
