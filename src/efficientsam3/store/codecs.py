"""Codecs: how an embedding becomes the payload of a fixed-size record, and back. One table, importable without PyTorch.

Another codec is a class in `encodings` and an entry here. `{K}` in a name stands for a number of principal components.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from efficientsam3.runtime.errors import UserError

if TYPE_CHECKING:
    from efficientsam3.store.encodings import Codec
    from efficientsam3.store.projection import Projection

_NUMBER = "{K}"


@dataclass(frozen=True)
class CodecKind:
    """One kind of codec."""

    description: str  # continues its name in help texts
    # Takes channels, cells a side, components (0 for a kind without) and their projection. Without the projection, only
    # `payload_size` of the result is used.
    build: "Callable[[int, int, int, Projection | None], Codec]"
    # Largest relative error, beyond the codec's own, between a stored embedding and the same one computed again. Even a
    # tiny difference moves a quantised value at a rounding boundary by a whole step.
    tolerance: float = 5e-2


def _float16(dim: int, size: int, *_: object) -> "Codec":
    from efficientsam3.store.encodings import Float16Codec

    return Float16Codec(dim, size)


def _int8(dim: int, size: int, *_: object) -> "Codec":
    from efficientsam3.store.encodings import QuantisedCodec

    return QuantisedCodec([(dim, 8)], size)


def _int4(dim: int, size: int, *_: object) -> "Codec":
    from efficientsam3.store.encodings import QuantisedCodec

    return QuantisedCodec([(dim, 4)], size)


def _pca_int8(_: int, size: int, components: int, projection: "Projection | None") -> "Codec":
    from efficientsam3.store.encodings import QuantisedCodec

    return QuantisedCodec([(components, 8)], size, projection)


def _pca_int4(_: int, size: int, components: int, projection: "Projection | None") -> "Codec":
    from efficientsam3.store.encodings import QuantisedCodec

    leading = components // 8  # they hold most of the variance
    return QuantisedCodec([(leading, 8), (components - leading, 4)], size, projection)


CODECS = {
    "float16": CodecKind(
        "the published format, the raw (EMBED_DIM, EMBED_SIZE, EMBED_SIZE) grid in little-endian float16",
        _float16,
        tolerance=2e-2,  # float16 rounds to 5e-4; other hardware, batch sizes and bfloat16 add a few times that
    ),
    "int8": CodecKind("half of that: 8 bits a value, a scale per cell", _int8),
    "int4": CodecKind("a quarter: 4 bits a value, a scale per 32 channels of a cell", _int4),
    "pca{K}-int8": CodecKind("K principal components at unit variance, as int8", _pca_int8),
    "pca{K}-int4": CodecKind("the leading K // 8 components as int8, the others as int4", _pca_int4),
}
DEFAULT_CODEC = "float16"


def parse_codec(name: str) -> tuple[CodecKind, int]:
    """The kind of the codec called `name`, and how many components it has; 0 where it has none.

    Raises:
        UserError: there is no such codec.
    """
    for written, kind in CODECS.items():
        match = re.fullmatch(re.escape(written).replace(re.escape(_NUMBER), r"([1-9]\d*)"), name)
        if match:
            return kind, int(match[1]) if match.groups() else 0
    raise UserError(f"Codec {name!r} is not known: this version has {', '.join(CODECS)}, with K components.")


def _known(name: str) -> str:
    parse_codec(name)  # whose UserError is a ValueError, as pydantic wants
    return name


CodecName = Annotated[str, AfterValidator(_known)]  # type of a field in a configuration or request


def pca_components(name: str) -> int | None:
    """K of a codec called pca{K}-..., None for a codec that needs no projection.

    Raises:
        UserError: there is no such codec.
    """
    return parse_codec(name)[1] or None


def payload_size(name: str, embed_dim: int, embed_size: int) -> int:
    """Bytes of a record's payload.

    Raises:
        UserError: there is no such codec, or it has more components than channels.
    """
    from efficientsam3.store.projection import check_components

    kind, components = parse_codec(name)
    check_components(components, embed_dim)
    return kind.build(embed_dim, embed_size, components, None).payload_size


def build_codec(name: str, embed_dim: int, embed_size: int, projection: "Projection | None" = None) -> "Codec":
    """The codec called `name` for embeddings of shape (embed_dim, embed_size, embed_size).

    Args:
        name: one of `CODECS`, with K a number.
        embed_dim: channels.
        embed_size: cells a side.
        projection: needed by the codecs with components.

    Raises:
        UserError: there is no such codec, or the projection is not one for it.
    """
    kind, components = parse_codec(name)
    found = None if projection is None else tuple(projection.basis.shape)
    if components and found != (components, embed_dim):
        raise UserError(
            f"Codec {name} needs a projection of {embed_dim} channels on {components} components, and the store's "
            f"manifest names {'none' if found is None else f'one of shape {found}'}: restore manifest.json from a copy."
        )
    return kind.build(embed_dim, embed_size, components, projection)
