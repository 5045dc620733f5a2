"""Writing big state dicts: the same bytes as torch.save, hashed, and whole or not at all."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from efficientsam3.checkpoints import writing
from efficientsam3.checkpoints.reading import read_tensors
from efficientsam3.checkpoints.writing import digest_tensor, save_tensors
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.memory import release_pages


def test_what_is_written_is_read_and_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_RELEASE_EVERY", 1000)  # give pages back again and again
    torch.save({str(index): torch.randn(1000) for index in range(20)}, tmp_path / "source.pt")
    tensors = read_tensors(tmp_path / "source.pt")
    digest = save_tensors(tmp_path / "x.pt", tensors, tmp_path / "x.pt")
    assert digest == hashlib.sha256((tmp_path / "x.pt").read_bytes()).hexdigest()
    again = read_tensors(tmp_path / "x.pt")
    assert list(again) == list(tensors)
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)


def test_a_full_disk_is_told_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, data: bytes) -> int:
        self.error = OSError(28, "No space left on device")
        raise self.error

    monkeypatch.setattr(writing._ReleasingFile, "write", full)
    with pytest.raises(UserError, match=r"Cannot write final\.pt \(No space left on device\): free some space"):
        save_tensors(tmp_path / "x.pt", {"a": torch.ones(3)}, Path("final.pt"))


def test_releasing_pages_changes_no_value() -> None:
    tensor = torch.arange(1 << 20)
    release_pages([tensor, torch.ones(1), torch.empty(3, device="meta")])
    assert torch.equal(tensor, torch.arange(1 << 20))


def test_digests_tell_values_apart_whatever_the_memory_layout() -> None:
    matrix = torch.arange(6).reshape(2, 3)
    assert digest_tensor(matrix.T) == digest_tensor(matrix.T.contiguous())
    assert digest_tensor(matrix) != digest_tensor(matrix + 1)
    assert digest_tensor(torch.tensor(1.0)) != digest_tensor(torch.tensor(2.0))
    assert len(digest_tensor(torch.ones(3, dtype=torch.bfloat16))) == 32
