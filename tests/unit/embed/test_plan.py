"""From a configuration to a plan: what is left to the teacher, and what a store without a manifest holds."""

from collections.abc import Callable
from pathlib import Path

import pytest

from efficientsam3.config.schema import DataConfig, EmbeddingConfig, ExportConfig
from efficientsam3.data.preprocess import SAM3_PREPROCESSING, SAM_PREPROCESSING, Preprocessing
from efficientsam3.distill.export import export_embeddings
from efficientsam3.embed.plan import plan_embedding, published_manifest
from efficientsam3.runtime.distributed import Process
from efficientsam3.runtime.errors import UserError
from efficientsam3.store.reader import EmbeddingStore

MakeExport = Callable[..., ExportConfig]
TEACHERS = ["DATA.IMG_SIZE", "teacher", "DISTILL.EMBED_SIZE", "teacher", "DISTILL.EMBED_DIM", "teacher"]


def test_sizes_are_the_teachers_own_unless_given(make_export: MakeExport) -> None:
    left, given = plan_embedding(make_export(*TEACHERS)), plan_embedding(make_export())
    assert (left.teacher, left.manifest) == (given.teacher, given.manifest)


def test_the_published_function_embeds_what_its_configuration_says(
    make_export: MakeExport, one_process: Process, store_path: Path, tmp_path: Path
) -> None:
    assert export_embeddings(make_export(*TEACHERS), one_process).embedded == 9
    ours, theirs = (EmbeddingStore(path / "embeddings") for path in (tmp_path / "teacher", store_path))
    assert ours.manifest == theirs.manifest
    assert [ours.read(row).tolist() for row in range(9)] == [theirs.read(row).tolist() for row in range(9)]


def write_published(directory: Path, record_size: int) -> Path:
    """A store of three records that take no room on the disk."""
    (directory / "rank0-keys.txt").write_text("a\nb\nc\n")
    with (directory / "rank0-values.bin").open("wb") as file:
        file.truncate(3 * record_size)
    return directory


@pytest.mark.parametrize(("shape", "preprocessing"), [((1024, 72), SAM3_PREPROCESSING), ((256, 64), SAM_PREPROCESSING)])
def test_a_published_store_is_known_by_the_size_of_its_records(
    tmp_path: Path, shape: tuple[int, int], preprocessing: Preprocessing
) -> None:
    store = write_published(tmp_path, 4 + 2 * shape[0] * shape[1] ** 2)
    manifest = published_manifest(store, DataConfig(), EmbeddingConfig())
    assert manifest is not None
    assert (manifest.embed_dim, manifest.embed_size, manifest.preprocessing) == (*shape, preprocessing)


def test_an_unknown_published_store_needs_its_sizes(tmp_path: Path) -> None:
    store = write_published(tmp_path, 4 + 2 * 64 * 16 * 16)
    with pytest.raises(UserError, match=r"not those of a known teacher: set DISTILL\.EMBED_DIM"):
        published_manifest(store, DataConfig(), EmbeddingConfig(EMBED_DIM=64))
    shape = EmbeddingConfig(EMBED_DIM=64, EMBED_SIZE=16)
    with pytest.raises(UserError, match=r"set DATA\.IMG_SIZE"):
        published_manifest(store, DataConfig(), shape)
    half = (0.5, 0.5, 0.5)
    manifest = published_manifest(store, DataConfig(IMG_SIZE=224, RESIZE="pad", MEAN=half, STD=half), shape)
    assert manifest is not None
    assert manifest.preprocessing == Preprocessing(image_size=224, resize="pad")
