"""Which images are for validation: a function of the image's id, so that order and later additions change nothing."""

import hashlib
from typing import Literal

Split = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")
DEFAULT_VAL_RATIO = 0.1


def split_of(image_id: bytes, val_ratio: float = DEFAULT_VAL_RATIO) -> Split:
    """The split of one image.

    `val` where the first 8 bytes of the id's SHA-256, as a big-endian fraction in [0, 1), lie below `val_ratio`. So a
    larger ratio only ever moves images from train to val.

    Args:
        image_id: as the file system writes it, see `ImageListing.ids`.
        val_ratio: the share of `val` in [0, 1].
    """
    fraction = int.from_bytes(hashlib.sha256(image_id).digest()[:8], "big") / 2**64
    return "val" if fraction < val_ratio else "train"
