"""The named students of SAM3's text encoder, and what it takes to build one; importable without transformers.

The published ones are MobileCLIP's text encoders (arXiv:2311.17049, arXiv:2508.20691) with a linear layer to the
width of SAM3's text features: `mct` has a convolutional block before and behind its transformer, `base` is a
transformer alone. Neither is causal.
"""

import re
from typing import Annotated, Literal, NamedTuple

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from efficientsam3.runtime.errors import UserError

MOST_TOKENS = 32  # positions of SAM3's own text encoder
VOCABULARY = 49408  # entries of CLIP's
END = VOCABULARY - 1  # the token that ends a phrase, the highest of all
PADDINGS = {
    "transformers": "the end token, masked in attention, as transformers' processor does",
    "published": "token 0, attended to, as the published EfficientSAM3 code does",
}
Padding = Literal["transformers", "published"]


class TextShape(NamedTuple):
    """The sizes of an encoder."""

    width: int
    layers: int
    heads: int
    convolutional: bool  # whether the first and the last layer are RepMixer blocks


TEXT_STUDENTS = {
    "mobileclip_s0": TextShape(512, 6, 8, True),
    "mobileclip_s1": TextShape(512, 12, 8, False),
    "mobileclip2_l": TextShape(768, 12, 12, False),
}
_OTHER = re.compile(r"(mct|base)/([1-9]\d{0,4})x([1-9]\d{0,2})x([1-9]\d{0,2})")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TextArchitecture:
    """What it takes to build a student of the text encoder and to feed it: stored with its weights.

    The context length and the padding are part of it. Convolutions see padding, and attention does unless it is
    masked, so that other ones give other features.
    """

    backbone: str  # of `TEXT_STUDENTS`, or `mct/WIDTHxLAYERSxHEADS` or `base/...`
    embed_dim: Annotated[int, Field(gt=0, le=1 << 12, strict=True)] = 256
    context_length: Annotated[int, Field(ge=3, le=MOST_TOKENS, strict=True)] = MOST_TOKENS
    padding: Padding = "transformers"

    @property
    def shape(self) -> TextShape:
        """The encoder's sizes; errors as for `text_shape`."""
        return text_shape(self.backbone)

    @property
    def pad_id(self) -> int:
        """The token that fills the positions behind a phrase."""
        return pad_token(self.padding)


def pad_token(padding: Padding) -> int:
    """The token that fills the positions behind a phrase."""
    return END if padding == "transformers" else 0


def text_shape(backbone: str) -> TextShape:
    """The sizes that a name stands for.

    Raises:
        UserError: it is no name of a text student, or its heads do not divide its width.
    """
    if backbone in TEXT_STUDENTS:
        return TEXT_STUDENTS[backbone]
    found = _OTHER.fullmatch(backbone)
    if found is None:
        raise UserError(
            f"Text student {backbone!r} is not known: use one of {', '.join(TEXT_STUDENTS)}, or mct/ or base/ with "
            "WIDTHxLAYERSxHEADS, such as base/256x4x4."
        )
    width, layers, heads = (int(found[number]) for number in (2, 3, 4))
    if width % heads or (found[1] == "mct" and layers < 2):
        reason = f"{heads} heads do not divide a width of {width}" if width % heads else "mct has 2 layers at least"
        raise UserError(f"Text student {backbone!r} is not possible ({reason}): choose other sizes.")
    return TextShape(width, layers, heads, found[1] == "mct")
