"""Giving memory back while a large mapped file is copied."""

import ctypes
import mmap
import sys
from collections.abc import Iterable

import torch

_MADV_PAGEOUT = 21  # Linux 5.4 and later


def release_pages(tensors: Iterable[torch.Tensor]) -> None:
    """Let the system take back the pages behind CPU tensors; those of a mapped file are read again when looked at.

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
