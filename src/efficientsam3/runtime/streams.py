"""Standard streams that take every character."""

import codecs
import io
from typing import TextIO

_FORGIVING = "efficientsam3.forgiving"


def forgive_encoding(stream: TextIO | None) -> None:
    """Let a stream write what its encoding lacks: a name's bytes as they are on disk, other characters as escapes."""
    if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
        stream.reconfigure(errors=_FORGIVING)


def _encode(error: UnicodeError) -> tuple[bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    written = b""
    for character in error.object[error.start : error.end]:
        try:
            written += character.encode(error.encoding, "surrogateescape")
        except UnicodeEncodeError:
            written += character.encode("ascii", "backslashreplace")
    return written, error.end


codecs.register_error(_FORGIVING, _encode)
