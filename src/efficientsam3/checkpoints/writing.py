"""Writing large state dicts out of mapped ones, in little memory."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.memory import release_pages

_RELEASE_EVERY = 1 << 28  # bytes


class _File:
    """What `torch.save` writes to: keeps the error that PyTorch turns into a RuntimeError without the reason."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


class _ReleasingFile(_File):
    """Also hashes on the way, and gives back the source's pages every 256 MB."""

    def __init__(self, file: BinaryIO, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors
        self._since_release = 0
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        written = super().write(data)
        self.digest.update(data)
        self._since_release += written
        if self._since_release >= _RELEASE_EVERY:
            release_pages(self._tensors.values())
            self._since_release = 0
        return written


def save_content(path: Path, content: dict[str, Any], final: Path) -> None:
    """Write nested containers of tensors and plain values as `torch.save` does; arguments and errors as below."""
    with path.open("wb") as file:
        _save(content, _File(file), final)


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], final: Path) -> str:
    """Write a flat dict as `torch.save` does, and return the file's SHA-256.

    Args:
        path: the temporary file that `atomic_path` gave.
        tensors: on the CPU, mapped or not.
        final: what error messages call the file.

    Raises:
        UserError: the disk is full, or cannot be written to.
    """
    with path.open("wb") as file:
        sink = _ReleasingFile(file, tensors)
        _save(dict(tensors), sink, final)
    return sink.digest.hexdigest()


def _save(content: dict[str, Any], sink: _File, final: Path) -> None:
    try:
        torch.save(content, sink)  # type: ignore[arg-type]
    except (RuntimeError, OSError) as error:
        cause = sink.error or error
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"Cannot write {final} ({cause.strerror}): free some space and run the same command again, or choose "
            "another path."
        ) from error


def digest_tensor(tensor: torch.Tensor) -> bytes:
    """SHA-256 of a tensor's bytes, row-major."""
    flat = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(flat.data).digest()
