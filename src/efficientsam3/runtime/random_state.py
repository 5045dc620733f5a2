"""The state of every random number generator that a step may draw from."""

import random
from typing import Any

import numpy as np
import torch

RandomState = dict[str, Any]


def capture_random_state(device: torch.device) -> RandomState:
    """The generators of Python, NumPy, PyTorch on the CPU and on `device`, as tensors and plain containers."""
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: RandomState = {
        "python": random.getstate(),
        "numpy": [torch.from_numpy(np.array(keys, np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: RandomState, device: torch.device) -> None:
    """Restore what `capture_random_state` returned; a GPU's generator only on the same kind of GPU."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    if device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def seed_everything(seed: int) -> None:
    """Seed every generator; `seed` is in [0, 2**32)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
