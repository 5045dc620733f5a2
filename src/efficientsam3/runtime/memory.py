"""Memory: measuring peaks, reusing what was freed, and releasing pages while a large mapped file is copied."""

import ctypes
import mmap
import os
import platform
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

_MADV_PAGEOUT = 21  # Linux 5.4 and later
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def release_pages(tensors: Iterable[torch.Tensor]) -> None:
    """Let the system reclaim the pages behind CPU tensors; those of a mapped file are read again on access.

    Values never change: MADV_PAGEOUT only evicts. Where the system has no such call, nothing happens.
    """
    if sys.platform != "linux":
        return
    madvise = ctypes.CDLL(None).madvise
    page = mmap.PAGESIZE
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.device.type != "cpu":
            continue
        start = -(-storage.data_ptr() // page) * page
        end = (storage.data_ptr() + storage.nbytes()) // page * page
        if end > start:
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_PAGEOUT)


def keep_freed_memory() -> bool:
    """Let glibc keep the memory of freed tensors for the next ones, in this process and those it forks from now on.

    By default glibc returns blocks above 32 MB at once, and the system zeroes fresh pages for the next tensor of that
    size, which took half the time of a training step on a CPU (docs/training.md). See mallopt(3).

    Returns:
        Whether the setting took effect; not without glibc, nor where the user has set MALLOC_* or GLIBC_TUNABLES.
    """
    set_by_user = "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ)
    if set_by_user or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))


def peak_of(work: Callable[[], object], device: torch.device) -> int | None:
    """Bytes by which memory grew at the peak of `work`; None where the system does not say.

    On a GPU this is what PyTorch's allocator counts, on the CPU this process's resident memory (Linux only).
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    if sys.platform != "linux" or device.type != "cpu":
        work()
        return None
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # what earlier work freed and glibc kept would not count
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak, VmHWM, to what is resident now; see proc(5)
    work()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))
