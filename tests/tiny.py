"""What fits the small SAM3 of `efficientsam3.testing.tiny_sam3`, and which students the ordinary tests build."""

import pytest

from efficientsam3.models.students import named_backbones

# What the small SAM3 of `tiny_sam3_path` needs in a configuration.
TINY_OPTS = ["DATA.IMG_SIZE", "224", "DISTILL.EMBED_SIZE", "16", "DISTILL.EMBED_DIM", "64", "DATA.NUM_WORKERS", "0"]
_SMALLEST = {"efficientvit_b0", "repvit_m0_9", "tiny_vit_5m"}
# Parameters of a test: the smallest student of each family is an ordinary one, the others are slow.
NAMED_BACKBONES = [
    name if name in _SMALLEST else pytest.param(name, marks=pytest.mark.slow) for name in named_backbones()
]
