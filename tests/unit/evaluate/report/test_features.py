import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from efficientsam3.data.layouts import list_images
from efficientsam3.data.listing import ImageListing
from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.evaluate.report.features import feature_pairs
from efficientsam3.evaluate.report.figures import FeaturePair
from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.models.student_files import load_trained_student
from efficientsam3.runtime.errors import UserError
from efficientsam3.store.manifest import StoreManifest
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.train.plan import paired_images
from efficientsam3.train.targets import StoredTargets

ARCHITECTURE = StudentArchitecture("efficientvit_b0", embed_dim=8, embed_size=4, image_size=64)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    state = Student(ARCHITECTURE).state_dict()
    # A fresh student's features hardly depend on the image; smaller variances amplify it.
    state = {key: 0.1 * tensor if key.endswith("running_var") else tensor for key, tensor in state.items()}
    preprocessing = Preprocessing(image_size=64).model_dump()
    content = {"model": state, "architecture": asdict(ARCHITECTURE), "preprocessing": preprocessing}
    torch.save(content, tmp_path / "ckpt_epoch_0.pth")
    return tmp_path / "ckpt_epoch_0.pth"


@pytest.fixture
def listing(tmp_path: Path) -> ImageListing:
    folder = tmp_path / "photographs" / "images" / "val"
    folder.mkdir(parents=True)
    for number, size in enumerate([(40, 20), (20, 40), (20, 20)]):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"sa_{number}.jpg")
    return list_images(tmp_path / "photographs", "val")


def write_store(directory: Path, ids: list[str], resize: str, embed_dim: int = 8) -> EmbeddingStore:
    """A store in the documented record format: every cell of image i has the value i, and its row in channel 1."""
    directory.mkdir()
    preprocessing = Preprocessing(image_size=64, resize=resize)  # type: ignore[arg-type]
    manifest = StoreManifest(embed_dim=embed_dim, embed_size=4, preprocessing=preprocessing)
    (directory / "manifest.json").write_text(manifest.model_dump_json())
    grids = [np.full((embed_dim, 4, 4), number, "<f2") for number in range(len(ids))]
    for grid in grids:
        grid[1] = np.arange(4)[:, None]
    records = [np.int32(7).tobytes() + grid.tobytes() for grid in grids]
    (directory / "rank0-values.bin").write_bytes(b"".join(records))
    (directory / "rank0-keys.txt").write_text("".join(f"{key}\n" for key in ids))
    return EmbeddingStore(directory)


def pairs_of(student: Student, store: EmbeddingStore, listing: ImageListing, count: int) -> list[FeaturePair]:
    targets = StoredTargets(store)
    return feature_pairs(student, targets, paired_images(listing, targets), count)


def test_images_in_the_store_are_paired(tmp_path: Path, checkpoint: Path, listing: ImageListing) -> None:
    store = write_store(tmp_path / "store", ["sa_2", "sa_0"], "square")
    student = load_trained_student(checkpoint)
    assert not student.training
    first, second = pairs_of(student, store, listing, 5)
    assert (first.size, second.size) == ((40, 20), (20, 20))
    assert first.image.shape == (64, 64, 3)
    assert first.teacher.shape == first.student.shape == (8, 4, 4)
    assert (first.teacher[0, 0, 0], second.teacher[0, 0, 0]) == (1, 0)  # sa_0 is the store's second record
    for pair in (first, second):
        pixels = torch.from_numpy(pair.image).permute(2, 0, 1)[None] / 127.5 - 1
        np.testing.assert_allclose(pair.student, student(pixels)[0].detach(), rtol=1e-3)
    assert not np.allclose(first.student, second.student, rtol=0.1)


def test_padding_is_left_out(tmp_path: Path, checkpoint: Path, listing: ImageListing) -> None:
    store = write_store(tmp_path / "store", ["sa_0", "sa_1"], "pad")
    tall, wide = pairs_of(load_trained_student(checkpoint), store, listing, 2)
    assert tall.image.shape == (64, 32, 3)
    assert tall.teacher.shape == tall.student.shape == (8, 4, 2)
    assert wide.image.shape == (32, 64, 3)
    assert wide.teacher.shape == wide.student.shape == (8, 2, 4)
    assert wide.teacher[1, :, 0].tolist() == [0, 1]


def test_no_more_images_than_asked_for(tmp_path: Path, checkpoint: Path, listing: ImageListing) -> None:
    store = write_store(tmp_path / "store", ["sa_0", "sa_1", "sa_2"], "square")
    assert len(pairs_of(load_trained_student(checkpoint), store, listing, 2)) == 2


def test_images_that_cannot_be_read_are_passed_over(tmp_path: Path, checkpoint: Path, listing: ImageListing) -> None:
    store = write_store(tmp_path / "store", ["sa_0", "sa_1", "sa_2"], "square")
    listing.path(0).write_bytes(b"not an image")
    sizes = [pair.size for pair in pairs_of(load_trained_student(checkpoint), store, listing, 2)]
    assert sizes == [(20, 40), (20, 20)]


def test_damaged_records_are_passed_over(tmp_path: Path, checkpoint: Path, listing: ImageListing) -> None:
    store = write_store(tmp_path / "store", ["sa_0", "sa_1", "sa_2"], "square")
    values = (store.directory / "rank0-values.bin").read_bytes()
    records = np.frombuffer(values, np.uint8).reshape(3, -1)
    checksums = [1, *(zlib.crc32(record) for record in records[1:])]
    (store.directory / "rank0-crc32.bin").write_bytes(np.array(checksums, "<u4").tobytes())
    store = EmbeddingStore(store.directory)
    sizes = [pair.size for pair in pairs_of(load_trained_student(checkpoint), store, listing, 3)]
    assert sizes == [(20, 40), (20, 20)]


def test_another_store_is_refused(tmp_path: Path, checkpoint: Path, listing: ImageListing) -> None:
    student = load_trained_student(checkpoint)
    with pytest.raises(UserError, match=r"\(8, 4, 64\).*\(16, 4, 64\)"):
        pairs_of(student, write_store(tmp_path / "other", ["sa_0"], "square", embed_dim=16), listing, 1)
    with pytest.raises(UserError, match="No image in"):
        pairs_of(student, write_store(tmp_path / "strange", ["sa_9"], "square"), listing, 1)
