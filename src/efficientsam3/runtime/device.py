"""Devices, their precision, and CPU cores. Importing this module does not import PyTorch."""

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.request import OneOf, describe

if TYPE_CHECKING:
    import torch

_DEVICES = Path("/dev")
DEVICES = {
    "auto": "CUDA, then MPS, then CPU",
    "cpu": "the processor",
    "mps": "Apple's GPUs",
    "cuda": "NVIDIA's GPUs",
}
DeviceName = Annotated[
    str,
    OneOf(DEVICES),
    Field(description=f"where to compute. {describe(DEVICES)}"),
]


def select_device(name: DeviceName, local_rank: int = 0) -> "torch.device":
    """The device for one process: `auto` takes CUDA, then MPS, then the CPU.

    On CUDA, float32 then means float32: PyTorch's convolutions would round their inputs to TF32's 10 bits by default.

    Raises:
        UserError: PyTorch does not see the device that was named, there are more local processes than GPUs or several
            on MPS, or `auto` would take the CPU on a machine with NVIDIA's GPUs.
    """
    import torch

    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        count = torch.cuda.device_count()
        if local_rank >= count:
            raise UserError(
                f"Process {local_rank} on this machine has no GPU of its own: PyTorch sees {count}; "
                "start no more processes than GPUs (GPUS=...), or compute on the CPU with --only-cpu."
            )
        torch.backends.cudnn.allow_tf32 = False
        return torch.device("cuda", local_rank)
    if name == "mps" or (name == "auto" and torch.backends.mps.is_available()):
        if not torch.backends.mps.is_available():
            raise UserError("DEVICE mps is not available here; use DEVICE auto or --only-cpu.")
        if local_rank > 0:
            raise UserError(
                f"PyTorch joins no processes on MPS, and this is number {local_rank + 1}: start one (GPUS=1), or "
                "compute on the CPU with --only-cpu."
            )
        return torch.device("mps")
    if name == "auto" and "CUDA_VISIBLE_DEVICES" not in os.environ and any(_DEVICES.glob("nvidia[0-9]*")):
        raise UserError(
            f"This machine has NVIDIA GPUs, but PyTorch {torch.__version__}, made for CUDA {torch.version.cuda}, sees "
            "none: install a PyTorch that fits the driver that `nvidia-smi` shows (such as pip install torch "
            "--index-url https://download.pytorch.org/whl/cu126), or choose the CPU, with --only-cpu or --device cpu."
        )
    return torch.device("cpu")


def copy_to(device: "torch.device", tensor: "torch.Tensor") -> "torch.Tensor":
    """A tensor on a device, without waiting for CUDA, which reads from pinned memory, or buffers what it reads.

    MPS is waited for: it may read its source after that was freed, and used for something else.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def autocast_dtype(device: "torch.device") -> "torch.dtype | None":
    """The dtype that mixed precision uses on a device, None for float32 throughout.

    bfloat16 on GPUs that have it, float16 on older ones. CPUs compute in float32, since bfloat16 without hardware for
    it was measured 6 times slower; so does MPS, where neither has been measured.
    """
    import torch

    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return None


def usable_cores() -> int:
    """Number of cores that this process may run on, as far as the system says; at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_machine() -> str:
    """One line about the machine that a measurement was made on: cores, load, PyTorch, system."""
    import torch

    return f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, {platform.platform()}"
