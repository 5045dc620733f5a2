"""Codecs: how an embedding becomes the payload of a fixed-size record, and back.

A record is a little-endian int32 augmentation seed followed by the payload.

| codec | payload |
|---|---|
| float16 | the published format: the raw (EMBED_DIM, EMBED_SIZE, EMBED_SIZE) grid in little-endian float16 |
| int8 | 8 bits a value, a scale per cell (see `quantise`) |
| int4 | 4 bits a value, a scale per 32 channels of a cell |
| pca{K}-int8 | K principal components at unit variance (see `projection`), as int8 |
| pca{K}-int4 | the leading K // 8 components as int8, for they hold most of the variance, then the others as int4 |
"""

import re
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from efficientsam3.runtime.errors import UserError
from efficientsam3.store.projection import Projection, check_components
from efficientsam3.store.quantise import INT4_BLOCK, Quantiser

SEED_BYTES = 4
CODECS = ("float16", "int8", "int4", "pca{K}-int8", "pca{K}-int4")
_PCA = re.compile(r"pca([1-9]\d*)-(int8|int4)")
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


def pca_components(name: str) -> int | None:
    """K of a codec called pca{K}-..., None for a codec that needs no projection.

    Raises:
        UserError: there is no such codec.
    """
    match = _PCA.fullmatch(name)
    if match is None and name not in CODECS[:3]:
        raise UserError(f"Codec {name!r} is not known: this version has {', '.join(CODECS)}, with K components.")
    return int(match[1]) if match else None


def payload_size(name: str, embed_dim: int, embed_size: int) -> int:
    """Bytes of a record's payload.

    Raises:
        UserError: there is no such codec, or it wants more components than channels.
    """
    components, cells = pca_components(name), embed_size**2
    if components is not None:
        check_components(components, embed_dim)
        return sum(part.size for part in _pca_parts(name, components, cells)[1])
    if name == Float16Codec.name:
        return Float16Codec(embed_dim, embed_size).payload_size
    return _quantiser(name, embed_dim, cells).size


def build_codec(name: str, embed_dim: int, embed_size: int, projection: Projection | None = None) -> Codec:
    """The codec called `name` for embeddings of shape (embed_dim, embed_size, embed_size).

    Args:
        name: one of `CODECS`, with K a number.
        embed_dim: channels.
        embed_size: cells a side.
        projection: of the codecs that need one.

    Raises:
        UserError: there is no such codec.
    """
    if pca_components(name) is not None:
        assert projection is not None, name
        assert projection.basis.shape == (pca_components(name), embed_dim), projection.basis.shape
        return PcaCodec(name, projection, embed_size)
    return Float16Codec(embed_dim, embed_size) if name == "float16" else QuantisedCodec(name, embed_dim, embed_size)


def pack_records(seeds: npt.NDArray[np.int32], payloads: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(B,) int32 seeds and (B, payload_size) uint8 payloads to (B, record_size) uint8 records."""
    header = seeds.astype("<i4").view(np.uint8).reshape(len(seeds), SEED_BYTES)
    return np.concatenate([header, payloads], axis=1)


def unpack_seeds(records: torch.Tensor) -> torch.Tensor:
    """(B, record_size) uint8 records to their (B,) int32 seeds."""
    return records[:, :SEED_BYTES].contiguous().view(torch.int32)[:, 0]


def storable(embeddings: torch.Tensor) -> torch.Tensor:
    """(B, D, E, E) float to (B,) bool: whether each embedding is finite, also in float16.

    No codec stores what is not; the quantised ones would spoil a whole block by one value.
    """
    return embeddings.to(torch.float16).isfinite().flatten(1).all(dim=1)


def _grid(cells: torch.Tensor, size: int) -> torch.Tensor:
    return cells.reshape(*cells.shape[:2], size, size)


def _quantiser(kind: str, channels: int, cells: int) -> Quantiser:
    return Quantiser(channels, cells, 8, channels) if kind == "int8" else Quantiser(channels, cells, 4, INT4_BLOCK)


def _pca_parts(name: str, components: int, cells: int) -> tuple[list[int], list[Quantiser]]:
    """How many components each of the payload's parts holds, and their quantisers."""
    head = components if name.endswith("int8") else components // _INT8_PART
    parts = [(count, kind) for count, kind in ((head, "int8"), (components - head, "int4")) if count]
    return [count for count, _ in parts], [_quantiser(kind, count, cells) for count, kind in parts]
