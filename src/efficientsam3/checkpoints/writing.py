"""Writing large state dicts out of mapped ones, in little memory."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.memory import release_pages

_RELEASE_EVERY = 1 << 28  # bytes


class _ReleasingFile:
    """What `torch.save` writes to: hashes on the way, and gives back the source's pages every 256 MB."""

    def __init__(self, file: BinaryIO, tensors: Mapping[str, torch.Tensor]) -> None:
        self._file, self._tensors = file, tensors
        self._since_release = 0
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            written = self._file.write(data)
        except OSError as error:
            self.error = error  # PyTorch turns it into a RuntimeError that has lost the reason
            raise
        self.digest.update(data)
        self._since_release += written
        if self._since_release >= _RELEASE_EVERY:
            release_pages(self._tensors.values())
            self._since_release = 0
        return written

    def flush(self) -> None:
        self._file.flush()


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
        try:
            torch.save(dict(tensors), sink)  # type: ignore[arg-type]
        except (RuntimeError, OSError) as error:
            reason = sink.error.strerror if sink.error else error
            raise UserError(f"Cannot write {final} ({reason}): free some space or choose another path.") from error
    return sink.digest.hexdigest()


def digest_tensor(tensor: torch.Tensor) -> bytes:
    """SHA-256 of a tensor's bytes, row-major."""
    flat = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(flat.data).digest()
