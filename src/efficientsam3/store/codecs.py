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
    # From the codec's name, channels, cells a side, and the projection of a kind that has components.
    build: "Callable[[str, int, int, Projection | None], Codec]"
    # Bytes of a payload, from the codec's name, channels, cells a side and components (0 where it has none).
    payload_size: Callable[[str, int, int, int], int]


def _build_float16(_: str, dim: int, size: int, __: "Projection | None") -> "Codec":
    from efficientsam3.store.encodings import Float16Codec

    return Float16Codec(dim, size)


def _build_quantised(name: str, dim: int, size: int, _: "Projection | None") -> "Codec":
    from efficientsam3.store.encodings import QuantisedCodec

    return QuantisedCodec(name, dim, size)


def _build_pca(name: str, dim: int, size: int, projection: "Projection | None") -> "Codec":
    from efficientsam3.store.encodings import PcaCodec

    assert projection is not None, name
    assert projection.basis.shape == (pca_components(name), dim), projection.basis.shape
    return PcaCodec(name, projection, size)


def _built_size(name: str, dim: int, size: int, _: int) -> int:
    return build_codec(name, dim, size).payload_size


def _pca_size(name: str, dim: int, size: int, components: int) -> int:
    from efficientsam3.store.encodings import pca_payload_size
    from efficientsam3.store.projection import check_components

    check_components(components, dim)
    return pca_payload_size(name, components, size)


CODECS = {
    "float16": CodecKind(
        "the published format, the raw (EMBED_DIM, EMBED_SIZE, EMBED_SIZE) grid in little-endian float16",
        _build_float16,
        _built_size,
    ),
    "int8": CodecKind("half of that: 8 bits a value, a scale per cell", _build_quantised, _built_size),
    "int4": CodecKind("a quarter: 4 bits a value, a scale per 32 channels of a cell", _build_quantised, _built_size),
    "pca{K}-int8": CodecKind("K principal components at unit variance, as int8", _build_pca, _pca_size),
    "pca{K}-int4": CodecKind("the leading K // 8 components as int8, the others as int4", _build_pca, _pca_size),
}
DEFAULT_CODEC = "float16"


def describe_codecs() -> str:
    """All kinds of codecs with their descriptions, for help texts."""
    return "; ".join(f"{name}: {kind.description}" for name, kind in CODECS.items())


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
    try:
        parse_codec(name)
    except UserError as error:
        raise ValueError(str(error)) from error
    return name


CodecName = Annotated[str, AfterValidator(_known)]  # of a field of a configuration or a request


def pca_components(name: str) -> int | None:
    """K of a codec called pca{K}-..., None for a codec that needs no projection.

    Raises:
        UserError: there is no such codec.
    """
    return parse_codec(name)[1] or None


def payload_size(name: str, embed_dim: int, embed_size: int) -> int:
    """Bytes of a record's payload.

    Raises:
        UserError: there is no such codec, or it wants more components than channels.
    """
    kind, components = parse_codec(name)
    return kind.payload_size(name, embed_dim, embed_size, components)


def build_codec(name: str, embed_dim: int, embed_size: int, projection: "Projection | None" = None) -> "Codec":
    """The codec called `name` for embeddings of shape (embed_dim, embed_size, embed_size).

    Args:
        name: one of `CODECS`, with K a number.
        embed_dim: channels.
        embed_size: cells a side.
        projection: needed by the codecs with components.

    Raises:
        UserError: there is no such codec.
    """
    return parse_codec(name)[0].build(name, embed_dim, embed_size, projection)
