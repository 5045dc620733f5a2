"""Codecs: how an embedding becomes the payload of a fixed-size record, and back.

A record is a little-endian int32 augmentation seed followed by the payload.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from efficientsam3.runtime.errors import UserError

SEED_BYTES = 4


class Codec(Protocol):
    """One way to store embeddings of one shape."""

    name: str
    payload_size: int  # bytes

    def encode(self, embedding: torch.Tensor) -> torch.Tensor:
        """(B, D, E, E) float, on any device, to (B, payload_size) uint8 on the same device."""
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
        return payload.contiguous().view(torch.float16).reshape(-1, *self._shape).float()


CODECS = {Float16Codec.name: Float16Codec}


def build_codec(name: str, embed_dim: int, embed_size: int) -> Codec:
    """The codec called `name` for embeddings of shape (embed_dim, embed_size, embed_size).

    Raises:
        UserError: there is no such codec.
    """
    if name not in CODECS:
        raise UserError(f"Codec {name!r} is not known: this version reads {', '.join(CODECS)}.")
    return CODECS[name](embed_dim, embed_size)


def pack_records(seeds: npt.NDArray[np.int32], payloads: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(B,) int32 seeds and (B, payload_size) uint8 payloads to (B, record_size) uint8 records."""
    header = seeds.astype("<i4").view(np.uint8).reshape(len(seeds), SEED_BYTES)
    return np.concatenate([header, payloads], axis=1)


def unpack_seeds(records: torch.Tensor) -> torch.Tensor:
    """(B, record_size) uint8 records to their (B,) int32 seeds."""
    return records[:, :SEED_BYTES].contiguous().view(torch.int32)[:, 0]
