from pathlib import Path

import pytest

from efficientsam3.data.preprocess import SAM_PREPROCESSING, Preprocessing
from efficientsam3.runtime.errors import UserError
from efficientsam3.store.manifest import StoreManifest, TeacherIdentity, read_store_manifest, write_store_manifest

MANIFEST = StoreManifest(
    embed_dim=4, embed_size=2, preprocessing=SAM_PREPROCESSING, teacher=TeacherIdentity(name="t", sha256="00")
)


def test_round_trip(tmp_path: Path) -> None:
    write_store_manifest(tmp_path, MANIFEST)
    assert read_store_manifest(tmp_path) == MANIFEST
    write_store_manifest(tmp_path, MANIFEST)  # the same settings again are welcome


@pytest.mark.parametrize(
    "change",
    [
        {"embed_dim": 5},
        {"preprocessing": Preprocessing()},
        {"seed": 1},
        {"teacher": TeacherIdentity(name="t", sha256="01")},
        {"teacher": TeacherIdentity(name="t", sha256="00", compute_dtype="bfloat16")},
    ],
)
def test_other_settings_cannot_mix(tmp_path: Path, change: dict[str, object]) -> None:
    write_store_manifest(tmp_path, MANIFEST)
    with pytest.raises(UserError, match=f"other settings .{next(iter(change))}"):
        write_store_manifest(tmp_path, MANIFEST.model_copy(update=change))
    assert read_store_manifest(tmp_path) == MANIFEST


def test_records_without_a_manifest_are_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "rank0-keys.txt").write_text("sa_1\n")
    with pytest.raises(UserError, match="has records but no manifest"):
        write_store_manifest(tmp_path, MANIFEST)


@pytest.mark.parametrize("text", ["{", "{}", '{"format_version": 99}'])
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="damaged or of another version"):
        read_store_manifest(tmp_path)


def test_no_manifest_means_the_published_format(tmp_path: Path) -> None:
    assert read_store_manifest(tmp_path) is None
