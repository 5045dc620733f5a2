"""Uniform symmetric quantisation of channels to 8 or 4 bits, with a scale per block of channels and cell.

A quantised grid of C channels and T cells is, in this order: scales, bfloat16, (blocks, T), and codes. Codes of 8 bits
are int8, (C, T). Codes of 4 bits are nibbles in excess-8, two channels a byte, the even channel in the low half:
((C + 1) // 2, T). A value is its code times its block's scale.
"""

from typing import Literal

import torch
from torch.nn.functional import pad

SCALE_BYTES = 2
INT4_BLOCK = 32  # channels; 16 would take half a bit more a value for a tenth less error
Bits = Literal[8, 4]


class Quantiser:
    """Quantises (B, channels, cells) grids of one shape into fixed-size rows of bytes."""

    def __init__(self, channels: int, cells: int, bits: Bits, block: int) -> None:
        """Lay out the bytes.

        Args:
            channels: channels of the grid.
            cells: cells of the grid.
            bits: bits per value.
            block: channels that share a scale; the last block may have fewer.
        """
        self._channels = channels
        self._cells = cells
        self._bits = bits
        self._block = block
        self._blocks = -(-channels // block)
        self._limit = 2 ** (bits - 1) - 1
        code_rows = channels if bits == 8 else (channels + 1) // 2
        self.size = (SCALE_BYTES * self._blocks + code_rows) * cells  # bytes

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        """(B, channels, cells) finite float to (B, size) uint8; the error is at most half of a value's scale."""
        missing = self._blocks * self._block - self._channels
        blocks = pad(values.float(), (0, 0, 0, missing)).reshape(-1, self._blocks, self._block, self._cells)
        scales = _round_up(blocks.abs().amax(dim=2) / self._limit)  # [B, blocks, cells]
        codes = (blocks / scales.float()[:, :, None]).round().flatten(1, 2)[:, : self._channels].to(torch.int8)
        packed = codes.view(torch.uint8) if self._bits == 8 else _pack(codes)
        return torch.cat([scales.flatten(1).view(torch.uint8), packed.flatten(1)], dim=1)

    def decode(self, content: torch.Tensor) -> torch.Tensor:
        """(B, size) uint8 to (B, channels, cells) float32, on the same device."""
        scale_size = SCALE_BYTES * self._blocks * self._cells
        scales = content[:, :scale_size].clone(memory_format=torch.contiguous_format).view(torch.bfloat16).float()
        rows = content[:, scale_size:].reshape(len(content), -1, self._cells)
        codes = rows.view(torch.int8).float() if self._bits == 8 else _unpack(rows)[:, : self._channels]
        scales = scales.reshape(-1, self._blocks, self._cells).repeat_interleave(self._block, dim=1)
        return codes * scales[:, : self._channels]


def _round_up(scales: torch.Tensor) -> torch.Tensor:
    """Round to bfloat16, never downwards, so that no code exceeds its limit, and never to 0, which cannot divide."""
    return (scales * (1 + 2**-8)).clamp(min=1e-30).to(torch.bfloat16)


def _pack(codes: torch.Tensor) -> torch.Tensor:
    """(B, C, T) int8 in [-7, 7] to (B, (C + 1) // 2, T) uint8."""
    nibbles = pad((codes + 8).view(torch.uint8), (0, 0, 0, codes.shape[1] % 2))
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


def _unpack(rows: torch.Tensor) -> torch.Tensor:
    """(B, R, T) uint8 to (B, 2 R, T) float32."""
    return torch.stack([rows & 15, rows >> 4], dim=2).flatten(1, 2).float() - 8
