"""Heads: from a backbone's feature maps to the teacher's embedding. One table, importable without PyTorch.

Another head is a module class and an entry here. The student resizes what a head gives to the teacher's grid.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.request import OneOf

if TYPE_CHECKING:
    import torch
    from torch import nn

Tensors = Mapping[str, "torch.Tensor"]


@dataclass(frozen=True)
class Head:
    """One kind of head."""

    description: str  # continues its name in help texts
    # From the channels of its maps (finest first), the embedding's channels, and the embedding's side in cells.
    build: Callable[[Sequence[int], int, int], "nn.Module"]
    pyramid: float  # the least stride of the maps that it takes, in cells of the grid; 0: the last map alone
    # Pattern of the keys of the convolutions that take the maps, in the maps' order. No other head has such keys.
    inputs: str
    output: str  # what the keys of its last convolution start with


def _published(channels: Sequence[int], embed_dim: int, _: int) -> "nn.Module":
    from efficientsam3.models.head_modules import PublishedHead

    return PublishedHead(channels[-1], embed_dim)


def _fpn(channels: Sequence[int], embed_dim: int, grid: int) -> "nn.Module":
    from efficientsam3.models.head_modules import FpnHead

    return FpnHead(channels, embed_dim, grid)


def _fpn4(channels: Sequence[int], embed_dim: int, grid: int) -> "nn.Module":
    from efficientsam3.models.head_modules import Fpn4Head

    return Fpn4Head(channels, embed_dim, grid)


HEADS = {
    "published": Head(
        "that of the published students, on the last map",
        _published,
        pyramid=0,
        inputs=r"head\.0\.weight",
        output="head.3.",
    ),
    "fpn": Head(
        "fuses strides 8, 16 and 32, with a tenth of the parameters and half the work",
        _fpn,
        pyramid=1 / 2,
        inputs=r"head\.lateral\.\d\.conv\.weight",
        output="head.output.",
    ),
    "fpn4": Head(
        "as fpn, and with stride 4, of which it keeps all that lies in a cell",
        _fpn4,
        pyramid=1 / 4,
        inputs=r"head\.fpn\.lateral\.\d\.conv\.weight",
        output="head.fpn.output.",
    ),
}
DEFAULT_HEAD = "published"
HeadName = Annotated[str, OneOf(HEADS)]  # of a field of a configuration or a request


def find_head(name: str) -> Head:
    """The head called `name`.

    Raises:
        UserError: there is no such head.
    """
    if name not in HEADS:
        raise UserError(f"MODEL.HEAD {name!r} is not known: use {' or '.join(HEADS)}.")
    return HEADS[name]


def identify_head(tensors: Tensors) -> str:
    """Which head a student's state dict has; the published one where the state dict has none at all."""
    return next((name for name, head in HEADS.items() if _input_keys(head, tensors)), DEFAULT_HEAD)


def output_prefix(tensors: Tensors) -> str:
    """What the keys of a student's last convolution start with."""
    return HEADS[identify_head(tensors)].output


def embedding_width(tensors: Tensors) -> int | None:
    """Channels of the embedding that a student's state dict gives; None without a head."""
    last = tensors.get(f"{output_prefix(tensors)}weight")
    return None if last is None else last.shape[0]


def backbone_width(tensors: Tensors) -> int | None:
    """Channels of the last map of a student's backbone, by the convolution that takes it; None without a head."""
    keys = _input_keys(HEADS[identify_head(tensors)], tensors)
    entry = tensors[max(keys)] if keys else None
    return None if entry is None or entry.ndim != 4 else entry.shape[1]


def _input_keys(head: Head, tensors: Tensors) -> list[str]:
    return [key for key in tensors if re.fullmatch(head.inputs, key)]
