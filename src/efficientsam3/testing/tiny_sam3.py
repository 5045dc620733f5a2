"""A small SAM3 with random weights, written as a checkpoint in sam3.pt's own key layout.

Every width of the real model is divided by 16, most layers are left out, and the rotary and position tables are cut to
a smaller grid. So everything that reads the architecture off the tensors of a sam3.pt reads this file the same way.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from efficientsam3.checkpoints.sam3_tensors import TRUNK_PREFIX, sam3_tensors
from efficientsam3.runtime.files import atomic_path

PATCH_SIZE = 14
WIDTH_DIVISOR = 16
# Smaller dimensions of the real file are counts: heads, mask tokens, kernel sides, prompt channels.
_SMALLEST_WIDTH = 32
_OTHER_SIZES = {200: 20, 256 + 2: 16 + 2}  # object queries; a position encoding with height and width appended
# Layers kept of each stack. The real ones have 32, 24, 3, 6, 6 and 4.
_DEPTHS = {
    TRUNK_PREFIX + "blocks.": 4,
    "detector.backbone.language_backbone.encoder.transformer.resblocks.": 2,
    "detector.geometry_encoder.encode.": 1,
    "detector.transformer.encoder.layers.": 2,
    "detector.transformer.decoder.layers.": 2,
    "tracker.transformer.encoder.layers.": 1,
}
# Sizes that are not widths of the model: the tokenizer's vocabulary, its 32 positions, and the convolutions that
# quadruple a mask's channels with every halving of its side.
_FIXED_ROWS = ("token_embedding.weight", "encoder.positional_embedding")
_MASK_DOWNSAMPLER = "tracker.maskmem_backbone.mask_downsampler.encoder."


@dataclass(frozen=True)
class TinySam3:
    """What the small model's trunk looks like; the defaults take 224-pixel images. Its embeddings have 64 channels."""

    grid: int = 16  # cells per side; the image size is 14 times that
    window: int = 4  # cells per side of an attention window
    pretraining_grid: int = 8  # cells per side of the position table, which is tiled over the grid
    head_size: int = 32
    global_blocks: tuple[int, ...] = (1, 3)

    @property
    def image_size(self) -> int:
        """Side of the input in pixels."""
        return self.grid * PATCH_SIZE


def tiny_shape(key: str, shape: tuple[int, ...], tiny: TinySam3) -> tuple[int, ...] | None:
    """The shape that a tensor of sam3.pt has in the small model, or None for a layer that is left out."""
    stack = next((prefix for prefix in _DEPTHS if key.startswith(prefix)), None)
    layer = int(key.removeprefix(stack).split(".")[0]) if stack else 0
    if stack and layer >= _DEPTHS[stack]:
        return None
    if key.endswith("freqs_cis"):
        side = tiny.grid if layer in tiny.global_blocks else tiny.window
        return (side * side, tiny.head_size // 2)
    if key == TRUNK_PREFIX + "pos_embed":
        return (1, 1 + tiny.pretraining_grid**2, _narrow(shape[2]))
    if key.endswith(_FIXED_ROWS):
        return (shape[0], _narrow(shape[1]))
    if key.startswith(_MASK_DOWNSAMPLER):
        is_last = key.startswith(_MASK_DOWNSAMPLER + "12.")
        return (_narrow(shape[0]), *shape[1:]) if is_last else shape
    return tuple(_narrow(size) for size in shape)


def _narrow(size: int) -> int:
    if size in _OTHER_SIZES:
        return _OTHER_SIZES[size]
    return size // WIDTH_DIVISOR if size >= _SMALLEST_WIDTH else size


def tiny_sam3(seed: int = 0, tiny: TinySam3 | None = None) -> dict[str, torch.Tensor]:
    """State dict of the small model: float32 weights, and complex64 rotary tables of ones, which loaders ignore.

    The same seed gives the same weights everywhere.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, fact in sam3_tensors().items():
        shape = tiny_shape(key, fact.shape, tiny or TinySam3())
        if shape is not None and fact.dtype == "complex64":
            tensors[key] = torch.ones(shape, dtype=torch.complex64)
        elif shape is not None:
            tensors[key] = _weight(key, shape, generator)
    return tensors


def _weight(key: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if key == TRUNK_PREFIX + "patch_embed.proj.weight":
        return _smooth_filters(shape, generator)
    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 1 + 0.1 * noise if key.endswith(".weight") else 0.02 * noise
    if "embed" in ".".join(key.split(".")[-2:]):
        return 0.02 * noise
    return noise / math.sqrt(math.prod(shape[1:]))


def _smooth_filters(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Filters of colour and coarse shading, so that a student at a larger stride has something to learn from."""
    coarse = torch.randn((*shape[:2], 2, 2), generator=generator)
    filters = torch.nn.functional.interpolate(coarse, size=shape[2:], mode="bilinear", align_corners=False)
    return filters / math.sqrt(math.prod(shape[1:]))


def write_tiny_sam3(path: Path, seed: int = 0, tiny: TinySam3 | None = None) -> None:
    """Write `tiny_sam3` as a flat dict, like sam3.pt: about 16 MB, nearly all of it the token table.

    Raises:
        UserError: the folder cannot be written to.
    """
    tensors = tiny_sam3(seed, tiny)
    with atomic_path(path) as temporary:
        torch.save(tensors, temporary)
