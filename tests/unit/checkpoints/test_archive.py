import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientsam3.checkpoints.archive import check_archive
from efficientsam3.checkpoints.reading import load_pickled, read_tensors
from efficientsam3.runtime.errors import UserError


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "x.pt"
    torch.save({"a": torch.arange(1000.0), "b": torch.ones(7, 3)}, path)
    return path


@settings(deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_byte_that_changed_is_noticed_or_of_no_account(saved: Path, where: float, flip: int) -> None:
    content = bytearray(saved.read_bytes())
    content[int(where * len(content))] ^= flip
    changed = saved.with_name("changed.pt")
    changed.write_bytes(content)
    try:
        found = read_tensors(changed)
    except UserError as error:
        assert str(changed) in str(error)  # noqa: PT017, either is right
    else:
        assert all(map(torch.equal, found.values(), read_tensors(saved).values()))


def test_values_are_compared_only_where_they_are_used(saved: Path, tmp_path: Path) -> None:
    content = bytearray(saved.read_bytes())
    start = content.index(torch.arange(1000.0).numpy().tobytes())
    content[start + 16 : start + 80] = bytes(64)
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    assert list(read_tensors(path, values=False)) == ["a", "b"]
    with pytest.raises(UserError, match="has changed since it was written"):
        load_pickled(path)


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this PyTorch always writes them")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(5)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_tensors(tmp_path / "x.pt")["a"], torch.ones(5))


def test_what_unpacks_to_more_than_the_file_is_refused(saved: Path, tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(saved) as source,
        zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for record in source.infolist():
            packed.writestr(record.filename, source.read(record))
    with pytest.raises(UserError, match="compressed record"):
        check_archive(tmp_path / "x.pt", values=False)
