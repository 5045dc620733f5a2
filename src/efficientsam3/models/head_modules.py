"""The modules of the heads in `models.heads`."""

from collections.abc import Sequence

import torch
from timm.layers import ConvNormAct, SeparableConvNormAct
from torch import nn
from torch.nn import functional as F

_LARGEST_WIDTH = 256
_DETAIL_SIDE = 4  # of the finest map's cells in one of the grid's


class PublishedHead(nn.Sequential):
    """The published projection head: 1x1 convolution without bias, BatchNorm, GELU, 3x3 convolution."""

    def __init__(self, in_channels: int, embed_dim: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, embed_dim, kernel_size=1, bias=False),
            nn.BatchNorm2d(embed_dim),
            nn.GELU(),
            nn.Conv2d(embed_dim, embed_dim, kernel_size=3, padding=1),
        )

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Project the last map: (B, C, H, W) to (B, embed_dim, H, W)."""
        features = maps[-1]
        for module in self:
            features = module(features)
        return features

    @property
    def output(self) -> nn.Conv2d:
        """The last convolution; what follows it is linear and leaves constants as they are."""
        last = self[-1]
        assert isinstance(last, nn.Conv2d)
        return last


class FpnHead(nn.Module):
    """Fuse maps of several strides on the teacher's grid, from the coarsest to the finest.

    After feature pyramid networks (Lin et al. 2017, arXiv:1612.03144), with two savings: maps finer than the grid are
    resized to it before their lateral convolution, and the 3x3 convolutions are depthwise-separable. Work is done at
    `min(256, embed_dim / 2)` channels, twice as many before the last convolution, which bounds the embedding's rank.
    """

    def __init__(self, channels: Sequence[int], embed_dim: int, grid: int) -> None:
        """Set up.

        Args:
            channels: of the maps, from the finest to the coarsest.
            embed_dim: channels of the embedding.
            grid: its side in cells.
        """
        super().__init__()
        self._grid = grid
        width = max(1, min(_LARGEST_WIDTH, embed_dim // 2))
        self.lateral = nn.ModuleList(ConvNormAct(count, width, kernel_size=1, apply_act=False) for count in channels)
        self.refine = nn.ModuleList(
            SeparableConvNormAct(width, width, kernel_size=3, act_layer=nn.GELU) for _ in channels
        )
        self.expand = SeparableConvNormAct(width, 2 * width, kernel_size=5, act_layer=nn.GELU)
        self.output = nn.Conv2d(2 * width, embed_dim, kernel_size=1)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Fuse (B, C_i, H_i, W_i), finest first, to (B, embed_dim, grid, grid)."""
        fused: torch.Tensor | None = None
        for lateral, refine, features in zip(
            reversed(self.lateral), reversed(self.refine), reversed(maps), strict=True
        ):
            side = min(features.shape[-1], self._grid)
            projected = lateral(resize(features, side))
            fused = refine(projected if fused is None else projected + resize(fused, side))
        assert fused is not None
        embedding: torch.Tensor = self.output(self.expand(resize(fused, self._grid)))
        return embedding


class Fpn4Head(nn.Module):
    """`FpnHead` with a finer map, whose 4 x 4 cells in one of the grid become channels, not averages.

    After space-to-depth (Shi et al. 2016, arXiv:1609.05158, the other way round). A map whose side is no multiple of
    the grid's is resized to 4 cells a cell first: strides of 4 pixels for a grid of 14 are 3.5.
    """

    def __init__(self, channels: Sequence[int], embed_dim: int, grid: int) -> None:
        """Set up; see `FpnHead`."""
        super().__init__()
        self._side = _DETAIL_SIDE * grid
        self.fpn = FpnHead([_DETAIL_SIDE**2 * channels[0], *channels[1:]], embed_dim, grid)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Fuse (B, C_i, H_i, W_i), finest first, to (B, embed_dim, grid, grid)."""
        embedding: torch.Tensor = self.fpn([_space_to_depth(resize(maps[0], self._side)), *maps[1:]])
        return embedding


def _space_to_depth(features: torch.Tensor) -> torch.Tensor:
    """(B, C, 4 S, 4 S) to (B, 16 C, S, S), as `F.pixel_unshuffle`, which Core ML has since iOS 16 alone."""
    _, channels, side, _ = features.shape
    small = side // _DETAIL_SIDE
    parts = features.reshape(-1, small, _DETAIL_SIDE, small, _DETAIL_SIDE)  # [B C, S, 4, S, 4]
    return parts.permute(0, 2, 4, 1, 3).reshape(-1, channels * _DETAIL_SIDE**2, small, small)


def resize(features: torch.Tensor, side: int) -> torch.Tensor:
    """Bilinear, (B, C, H, W) to (B, C, side, side); leaves a map of that size alone."""
    if features.shape[-2:] == (side, side):
        return features
    return F.interpolate(features, (side, side), mode="bilinear", align_corners=False)
