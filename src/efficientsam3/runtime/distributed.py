"""Processes: one, or several started by torchrun."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from efficientsam3.runtime.device import DeviceName, select_device
from efficientsam3.runtime.environment import Place, place_among_processes, thread_count
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.memory import keep_freed_memory
from efficientsam3.runtime.network import address_towards, interface_of, is_loopback
from efficientsam3.runtime.request import shorten

T = TypeVar("T")
# Ranks may wait this long for each other: one may have thousands more images to read.
_TIMEOUT = timedelta(hours=2)
# And this long for the first meeting.
_MEETING_TIMEOUT = timedelta(seconds=600)
# What gloo, NCCL and the store say where the process at the other end has ended.
_LOST = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited")


@dataclass(frozen=True)
class Process:
    """This process among its peers."""

    rank: int
    world_size: int
    device: torch.device
    launcher: int | None  # process id of torchrun, None when started as plain `python`

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the files that a run writes once."""
        return self.rank == 0

    def is_orphan(self) -> bool:
        """Whether torchrun has died: its workers run in their own sessions, outlive it and must stop themselves."""
        return self.launcher is not None and os.getppid() != self.launcher


@contextmanager
def process_group(device_name: DeviceName) -> Iterator[Process]:
    """Join the other processes that torchrun started, or run alone.

    NCCL on GPUs, gloo elsewhere.

    Raises:
        UserError: the device is not available, there are more processes than GPUs, the environment does not say who and
            where the processes are, or they do not find each other, or lose each other since one has ended.
    """
    place = place_among_processes()
    thread_count()  # which PyTorch, if it is wrong, ignores
    device = select_device(device_name, place.local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if device.type == "cpu":
        keep_freed_memory()
    launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
    process = Process(place.rank, place.world_size, device, launcher)
    if place.world_size == 1:
        yield process
        return
    is_cuda = device.type == "cuda"
    # After an exception the group is left as it is: NCCL would wait here for peers that wait for this process, and the
    # error would stay unsaid. torchrun ends the peers once this process has ended.
    try:
        dist.init_process_group(
            "nccl" if is_cuda else "gloo",
            store=_meet(place),
            rank=place.rank,
            world_size=place.world_size,
            timeout=_TIMEOUT,
            device_id=device if is_cuda else None,  # or NCCL would have to guess, in barriers, which GPU it is
        )
        yield process
    except RuntimeError as error:
        if not any(words in str(error) for words in _LOST):
            raise
        reason = shorten(" ".join(str(error).split()))
        raise UserError(
            f"Process {place.rank} of {place.world_size} has lost another ({reason}): look at what the others said. "
            "The same command goes on from what was saved."
        ) from error
    dist.destroy_process_group()


def _meet(place: Place) -> Any:
    """The store by which the processes exchange their addresses, once all have found it."""
    try:
        store, _, _ = next(rendezvous("env://", place.rank, place.world_size, timeout=_MEETING_TIMEOUT))
        _choose_interface(store, place)
        store.set_timeout(_TIMEOUT)
    except (RuntimeError, ValueError) as error:  # DistNetworkError and DistStoreError are RuntimeErrors
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"Process {place.rank} of {place.world_size} found no others at {where} (MASTER_ADDR, MASTER_PORT) within "
            f"{_MEETING_TIMEOUT.seconds} s ({reason}): start all, with an address and a free port that all reach."
        ) from error
    return store


def _choose_interface(store: Any, place: Place) -> None:
    """Let gloo listen where other machines reach this one, unless GLOO_SOCKET_IFNAME says where.

    By itself it takes the address of this machine's name, which may be another network's, or 127.0.1.1. That is what
    leads to MASTER_ADDR; on the machine whose own address that is, what leads to any other machine.
    """
    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return
    address = address_towards(os.environ["MASTER_ADDR"])
    store.set(f"address/{place.rank}", address or "")
    if address and is_loopback(address):
        everyone = [store.get(f"address/{rank}").decode() for rank in range(place.world_size)]
        elsewhere = next((other for other in everyone if other and not is_loopback(other)), None)
        address = address_towards(elsewhere) if elsewhere else address
    if address and (name := interface_of(address)):
        os.environ["GLOO_SOCKET_IFNAME"] = name


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


def all_gather(value: T) -> list[T]:
    """Every process's `value`, by rank. Values are pickled, which is safe since only our own processes send them."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: T) -> T:
    """Rank 0's `value`."""
    return all_gather(value)[0]


def on_main(process: Process, function: Callable[[], T]) -> T:
    """What `function` returns on rank 0, the only one to call it; all processes must call this.

    Raises:
        UserError: rank 0 was refused; so are all.
    """
    value: T | None = None
    refusal: UserError | None = None
    if process.is_main:
        try:
            value = function()
        except UserError as error:
            refusal = error
    value, sentence = broadcast((value, None if refusal is None else str(refusal)))
    if sentence is not None:
        raise refusal or UserError(sentence)
    return cast(T, value)


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Element-wise sum of a tensor over all processes, on its device."""
    total = values.clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def broadcast_state(module: torch.nn.Module) -> None:
    """Give every process rank 0's parameters and buffers."""
    if dist.is_initialized():
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


class StopVote:
    """Lets the processes end after the same step once any of them has been asked to.

    Each call of `agreed` starts a vote and returns the outcome of the previous one, so that no process waits: votes are
    counted on the CPU while the device computes.
    """

    def __init__(self, requested: Callable[[], bool]) -> None:
        """Set up the vote on every process; `requested` says whether this one has been asked to stop."""
        self._requested = requested
        self._group: Any = dist.new_group(backend="gloo", timeout=_TIMEOUT) if dist.is_initialized() else None
        self._pending: tuple[torch.Tensor, dist.Work] | None = None

    def agreed(self) -> bool:
        """Whether all processes stop here; to be called by all of them equally often."""
        if self._group is None:
            return self._requested()
        before = self._pending
        vote = torch.tensor([int(self._requested())])
        work = dist.all_reduce(vote, dist.ReduceOp.MAX, self._group, async_op=True)
        assert work is not None
        self._pending = vote, work
        if before is None:
            return False
        before[1].wait()
        return bool(before[0])
