"""Records: a little-endian int32 augmentation seed, followed by the payload that a codec makes of an embedding."""

import numpy as np
import numpy.typing as npt
import torch

SEED_BYTES = 4


def pack_records(seeds: npt.NDArray[np.int32], payloads: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(B,) int32 seeds and (B, payload_size) uint8 payloads to (B, record_size) uint8 records."""
    return np.concatenate([seed_bytes(seeds), payloads], axis=1)


def seed_bytes(seeds: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """(B,) int32 seeds to (B, SEED_BYTES) uint8, the beginnings of their records."""
    return seeds.astype("<i4").view(np.uint8).reshape(len(seeds), SEED_BYTES)


def unpack_seeds(records: torch.Tensor) -> torch.Tensor:
    """(B, record_size) uint8 records to their (B,) int32 seeds."""
    return records[:, :SEED_BYTES].contiguous().view(torch.int32)[:, 0]


def storable(embeddings: torch.Tensor) -> torch.Tensor:
    """(B, D, E, E) float to (B,) bool: whether each embedding is finite, also in float16.

    No codec stores other values: in a quantised codec, one of them would spoil a whole block.
    """
    return embeddings.to(torch.float16).isfinite().flatten(1).all(dim=1)
