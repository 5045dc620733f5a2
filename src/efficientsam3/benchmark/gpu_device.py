"""The GPU that is measured: which it is, and when it computes."""

import platform
import re
import subprocess
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
import transformers
from torch import nn
from torch.profiler import ProfilerActivity, profile

from efficientsam3.runtime.device import DeviceName, select_device
from efficientsam3.runtime.errors import UserError


def find_device(name: DeviceName, small: bool) -> torch.device:
    """The device to measure.

    Raises:
        UserError: there is no CUDA device, and no small trial on another one was asked for.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "PyTorch sees no CUDA device here, and this command measures one: run it where `nvidia-smi` lists a GPU, "
            "or try it on the CPU with small models by --device cpu --small."
        )
    device = select_device(name)
    if device.type != "cuda" and not small:
        raise UserError(f"The full size would take hours on {device}: add --small, or leave --device out.")
    return device


def describe_gpu(device: torch.device) -> dict[str, str]:
    """Card, driver and versions."""
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        name, driver = f"{card.name}, {card.total_memory / 2**30:.0f} GiB", _driver()
    else:
        name, driver = f"{platform.processor() or platform.machine()} ({device.type})", "none"
    return {
        "card": name,
        "driver": driver,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }


def _driver() -> str:
    try:
        shown = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    found = re.search(r"Driver Version: ([\d.]+)", shown)
    return found[1] if found else "unknown"


@contextmanager
def watch_kernels(device: torch.device) -> Iterator[Callable[[float], str]]:
    """Watch what a GPU does in the body, by PyTorch's profiler; gives a function that describes it afterwards.

    The function takes the share of the kernels, the first ones, that are left out as warm-up.
    """
    if device.type != "cuda":
        yield lambda left_out: "no GPU to watch"
        return
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        yield lambda left_out: describe_kernels(profiler.events() or (), left_out)


def describe_kernels(events: Iterable[Any], left_out: float) -> str:
    """In which share of the time a kernel ran, and in which data was copied back to the host.

    Args:
        events: the profiler's; those of the host are passed over.
        left_out: share of the kernels, from the first on, that are left out.
    """
    spans = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in events
        if event.device_type.name == "CUDA"
    )
    kernels = [(start, end) for start, end, name in spans if not name.startswith(("Memcpy", "Memset"))]
    kernels = kernels[int(left_out * len(kernels)) :]
    if not kernels:
        return "no kernel ran"
    begin = kernels[0][0]
    whole = max(end for _, end in kernels) - begin
    copies = [(start, end) for start, end, name in spans if name.startswith("Memcpy DtoH") and start >= begin]
    computing, copying = (f"{100 * _covered(each) / whole:.0f} %" for each in (kernels, copies))
    return f"the GPU computes {computing} of the time and copies back {copying}"


def describe_step(step: Callable[[], object], student: nn.Module, device: torch.device) -> str:
    """Take a step, and count what no CPU can show that there is none of.

    Returns:
        how often the host waited for the GPU, as PyTorch's debug mode sees it, and how many gradients have another
        memory layout than their parameters, of which DistributedDataParallel would warn.
    """
    unlike: list[torch.Tensor] = []

    def compare(parameter: torch.Tensor) -> None:
        if parameter.grad is not None and parameter.grad.stride() != parameter.stride():
            unlike.append(parameter)

    hooks = [
        parameter.register_post_accumulate_grad_hook(compare)  # type: ignore[no-untyped-call]
        for parameter in student.parameters()
    ]
    is_cuda = device.type == "cuda"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if is_cuda:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            if is_cuda:
                torch.cuda.set_sync_debug_mode("default")
            for hook in hooks:
                hook.remove()
    waits = sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)
    return f"{waits} waits a step, {len(unlike)} gradients in another layout"


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of spans, which come in the order of their starts."""
    total = 0.0
    reached = float("-inf")
    for start, end in spans:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
