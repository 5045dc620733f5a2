"""What cannot be computed in float16, in any runtime: linear attention, and modules with large values."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

LARGEST = 65504 / 4  # of a value in float16, with a margin for images not seen
# timm's EfficientViT computes linear attention in this class and at this place. It stays in float32 whatever the
# precision: its sums over all cells overflow float16.
LINEAR_ATTENTION_CLASS = "LiteMLA"
LINEAR_ATTENTION_PLACE = "context_module.main"


@torch.no_grad()
def large_modules(encoder: nn.Module, images: Iterable[torch.Tensor]) -> frozenset[str]:
    """The modules whose inputs or outputs come near float16's limit, by the names that `torch.jit.trace` gives them.

    Args:
        encoder: in eval mode.
        images: (1, 3, S, S) that it is run on.
    """
    found: set[str] = set()

    def watch(name: str, _: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        values = [value for value in (*inputs, output) if isinstance(value, torch.Tensor)]
        if not all(bool((value.abs() <= LARGEST).all()) for value in values):
            found.add(name)

    handles = [
        module.register_forward_hook(partial(watch, _traced_name(encoder, name)))
        for name, module in encoder.named_modules()
    ]
    try:
        for pixels in images:
            encoder(pixels)
    finally:
        for handle in handles:
            handle.remove()
    return frozenset(found)


def _traced_name(encoder: nn.Module, name: str) -> str:
    """The name in a trace, which omits module lists, since they are not called."""
    parts = name.split(".")
    return ".".join(
        part
        for index, part in enumerate(parts)
        if not isinstance(encoder.get_submodule(".".join(parts[: index + 1])), nn.ModuleList)
    )
