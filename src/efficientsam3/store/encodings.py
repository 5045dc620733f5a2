"""Classes of the codecs that the table in `codecs` names."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch

from efficientsam3.store.projection import Projection
from efficientsam3.store.quantise import INT4_BLOCK, Bits, Quantiser


class Codec(Protocol):
    """One way to store embeddings of one shape."""

    payload_size: int  # bytes

    def encode(self, embedding: torch.Tensor) -> torch.Tensor:
        """(B, D, E, E) finite float, on any device, to (B, payload_size) uint8 on the same device."""
        ...

    def decode(self, payload: torch.Tensor) -> torch.Tensor:
        """(B, payload_size) uint8, on any device, to (B, D, E, E) float32 on the same device."""
        ...


class Float16Codec:
    """The published format: the raw (EMBED_DIM, EMBED_SIZE, EMBED_SIZE) grid in little-endian float16."""

    def __init__(self, embed_dim: int, embed_size: int, rows: int | None = None) -> None:
        """Of grids of so many channels and cells a side, or of so many rows of cells."""
        self._shape = (embed_dim, rows or embed_size, embed_size)
        self.payload_size = 2 * math.prod(self._shape)

    def encode(self, embedding: torch.Tensor) -> torch.Tensor:
        """See `Codec`."""
        return embedding.to(torch.float16).contiguous().flatten(1).view(torch.uint8)

    def decode(self, payload: torch.Tensor) -> torch.Tensor:
        """See `Codec`."""
        # A payload cut out of a record starts 4 bytes in, and MPS cannot view such an offset as float16.
        return (
            payload.clone(memory_format=torch.contiguous_format).view(torch.float16).reshape(-1, *self._shape).float()
        )


class QuantisedCodec:
    """Consecutive groups of channels, or of principal components, each quantised to 8 or 4 bits."""

    def __init__(
        self, parts: Sequence[tuple[int, Bits]], embed_size: int, projection: Projection | None = None
    ) -> None:
        """Lay out the payload.

        Args:
            parts: the number of channels or components in each group, possibly 0, and the bits per value.
            embed_size: cells a side.
            projection: from channels to components; None to quantise the channels themselves.
        """
        parts = [part for part in parts if part[0]]
        self._embed_size = embed_size
        self._counts = [count for count, _ in parts]
        self._quantisers = [
            Quantiser(count, embed_size**2, bits, count if bits == 8 else INT4_BLOCK) for count, bits in parts
        ]
        self._sizes = [quantiser.size for quantiser in self._quantisers]
        self._projections = {projection.mean.device: projection} if projection else {}
        self.payload_size = sum(self._sizes)

    def encode(self, embedding: torch.Tensor) -> torch.Tensor:
        """See `Codec`."""
        values = embedding.flatten(2)
        if self._projections:
            values = self._projection(embedding.device).project(values)
        groups = zip(self._quantisers, torch.split(values, self._counts, dim=1), strict=True)
        return _join([quantiser.encode(group) for quantiser, group in groups])

    def decode(self, payload: torch.Tensor) -> torch.Tensor:
        """See `Codec`."""
        groups = zip(self._quantisers, torch.split(payload, self._sizes, dim=1), strict=True)
        values = _join([quantiser.decode(group) for quantiser, group in groups])
        if self._projections:
            values = self._projection(payload.device).restore(values)
        return values.reshape(*values.shape[:2], self._embed_size, self._embed_size)

    def _projection(self, device: torch.device) -> Projection:
        if device not in self._projections:
            self._projections[device] = next(iter(self._projections.values())).to(device)
        return self._projections[device]


def _join(groups: list[torch.Tensor]) -> torch.Tensor:
    return groups[0] if len(groups) == 1 else torch.cat(groups, dim=1)  # cat would copy a single one
