"""The codecs' classes; `codecs` has the table of them."""

from typing import Protocol

import torch

from efficientsam3.store.projection import Projection
from efficientsam3.store.quantise import INT4_BLOCK, Quantiser

_INT8_PART = 8  # one in so many components of pca{K}-int4 takes 8 bits


class Codec(Protocol):
    """One way to store embeddings of one shape."""

    name: str
    payload_size: int  # bytes

    def encode(self, embedding: torch.Tensor) -> torch.Tensor:
        """(B, D, E, E) finite float, on any device, to (B, payload_size) uint8 on the same device."""
        ...

    def decode(self, payload: torch.Tensor) -> torch.Tensor:
        """(B, payload_size) uint8, on any device, to (B, D, E, E) float32 on the same device."""
        ...


class Float16Codec:
    """The published format: the raw (EMBED_DIM, EMBED_SIZE, EMBED_SIZE) grid in little-endian float16."""

    name = "float16"

    def __init__(self, embed_dim: int, embed_size: int) -> None:
        self._shape = (embed_dim, embed_size, embed_size)
        self.payload_size = 2 * embed_dim * embed_size * embed_size

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
    """`int8` and `int4`."""

    def __init__(self, name: str, embed_dim: int, embed_size: int) -> None:
        self.name, self._embed_size = name, embed_size
        self._quantiser = _quantiser(name, embed_dim, embed_size**2)
        self.payload_size = self._quantiser.size

    def encode(self, embedding: torch.Tensor) -> torch.Tensor:
        """See `Codec`."""
        return self._quantiser.encode(embedding.flatten(2))

    def decode(self, payload: torch.Tensor) -> torch.Tensor:
        """See `Codec`."""
        return _grid(self._quantiser.decode(payload), self._embed_size)


class PcaCodec:
    """`pca{K}-int8` and `pca{K}-int4`."""

    def __init__(self, name: str, projection: Projection, embed_size: int) -> None:
        self.name, self._embed_size = name, embed_size
        self._projections = {projection.mean.device: projection}
        self._counts, self._quantisers = _pca_parts(name, len(projection.basis), embed_size**2)
        self.payload_size = sum(part.size for part in self._quantisers)

    def encode(self, embedding: torch.Tensor) -> torch.Tensor:
        """See `Codec`."""
        coefficients = self._projection(embedding.device).project(embedding.flatten(2))
        parts = zip(self._quantisers, torch.split(coefficients, self._counts, dim=1), strict=True)
        return torch.cat([quantiser.encode(part) for quantiser, part in parts], dim=1)

    def decode(self, payload: torch.Tensor) -> torch.Tensor:
        """See `Codec`."""
        sizes = [part.size for part in self._quantisers]
        parts = zip(self._quantisers, torch.split(payload, sizes, dim=1), strict=True)
        coefficients = torch.cat([quantiser.decode(part) for quantiser, part in parts], dim=1)
        return _grid(self._projection(payload.device).restore(coefficients), self._embed_size)

    def _projection(self, device: torch.device) -> Projection:
        if device not in self._projections:
            self._projections[device] = next(iter(self._projections.values())).to(device)
        return self._projections[device]


def _grid(cells: torch.Tensor, size: int) -> torch.Tensor:
    return cells.reshape(*cells.shape[:2], size, size)


def _quantiser(kind: str, channels: int, cells: int) -> Quantiser:
    return Quantiser(channels, cells, 8, channels) if kind == "int8" else Quantiser(channels, cells, 4, INT4_BLOCK)


def _pca_parts(name: str, components: int, cells: int) -> tuple[list[int], list[Quantiser]]:
    """How many components each of the payload's parts holds, and their quantisers."""
    head = components if name.endswith("int8") else components // _INT8_PART
    parts = [(count, kind) for count, kind in ((head, "int8"), (components - head, "int4")) if count]
    return [count for count, _ in parts], [_quantiser(kind, count, cells) for count, kind in parts]


def pca_payload_size(name: str, components: int, embed_size: int) -> int:
    """Bytes of the payload of a codec with that many components."""
    return sum(part.size for part in _pca_parts(name, components, embed_size**2)[1])
