"""Image ids as a tensor of bytes: forked workers share its pages, spawned ones get it through shared memory."""

import numpy as np
import numpy.typing as npt
import torch


def ids_to_tensor(ids: npt.NDArray[np.bytes_]) -> torch.Tensor:
    """(N,) fixed-width bytes to (N, width) uint8, without a copy where the array is contiguous."""
    contiguous = np.ascontiguousarray(ids)
    return torch.from_numpy(contiguous.view(np.uint8).reshape(len(ids), ids.dtype.itemsize))


def ids_from_tensor(table: torch.Tensor) -> npt.NDArray[np.bytes_]:
    """(N, width) uint8 to (N,) fixed-width bytes, a view."""
    values: npt.NDArray[np.uint8] = table.numpy()
    return values.view(f"S{table.shape[1]}").reshape(-1)
