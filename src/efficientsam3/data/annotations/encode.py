"""Masks as COCO's compressed run lengths, which `rle` reads."""

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


def encode_rle(mask: Any) -> dict[str, Any]:
    """COCO's run-length encoding, compressed, as JSON, of a mask (H, W) bool: an array, or a tensor on the CPU."""
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}
