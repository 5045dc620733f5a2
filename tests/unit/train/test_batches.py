"""Records that are read by threads, ahead of the computation, into the batches' own memory."""

import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from efficientsam3.data.augment import Augmentation
from efficientsam3.data.layouts import list_images
from efficientsam3.data.loader import NO_ROW, ImageBatch, ImageSample, collate_images
from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.store.codecs import build_codec
from efficientsam3.store.manifest import StoreManifest, write_store_manifest
from efficientsam3.store.projection import Projection
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.store.shards import Shard
from efficientsam3.store.writer import BackgroundWriter
from efficientsam3.train import batches as module
from efficientsam3.train.batches import TrainBatch, copy_stream, on_device, with_records
from efficientsam3.train.objective import FeatureObjective
from efficientsam3.train.plan import paired_images
from efficientsam3.train.targets import StoredTargets

CPU = torch.device("cpu")
MANIFEST = StoreManifest(embed_dim=4, embed_size=2, preprocessing=Preprocessing(image_size=28))
SIZE = MANIFEST.record_size


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    """Nine random records in two shards."""
    write_store_manifest(tmp_path, MANIFEST)
    for rank in range(2):
        with BackgroundWriter(Shard(tmp_path, rank), SIZE) as writer:
            for number in range(rank, 9, 2):
                writer.append(f"sa_{number}", np.random.default_rng(number).integers(0, 60, SIZE, dtype=np.uint8))
    return EmbeddingStore(tmp_path)


def images(rows: list[int], broken: list[str] | None = None) -> ImageBatch:
    count = len(rows)
    names = [f"row {row}" for row in rows]
    pixels = torch.zeros(count, 3, 28, 28, dtype=torch.uint8)
    seeds = torch.zeros(count, dtype=torch.int32)
    return ImageBatch(names, pixels, torch.full((count, 2), 28), seeds, rows, broken or [])


def readers() -> int:
    return sum(thread.name.startswith("record-reader") for thread in threading.enumerate())


def damage(store: EmbeddingStore, row: int, offset: int) -> None:
    number, position = store.index.place(row)
    path = store.shards[number].values_path
    values = bytearray(path.read_bytes())
    values[position * SIZE + offset] ^= 1
    path.write_bytes(values)


def test_every_batch_has_the_records_of_its_rows_in_the_order_of_the_batches(store: EmbeddingStore) -> None:
    orders = [[8, 0], [3, 4, 7], [1], [6, 2], [5, 5]]
    found = list(with_records(map(images, orders), StoredTargets(store), CPU))
    assert [batch.rows for batch in found] == orders
    for batch in found:
        assert batch.image_ids == [f"row {row}" for row in batch.rows]
        assert batch.weights.tolist() == [1.0] * len(batch.rows)
        for row, record in zip(batch.rows, batch.records, strict=True):
            number, position = store.index.place(row)
            content = store.shards[number].values_path.read_bytes()[position * SIZE : (position + 1) * SIZE]
            assert record.numpy().tobytes() == content


def test_a_record_is_read_into_the_memory_of_its_batch(store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    read, places = EmbeddingStore.read_into, dict[int, int]()

    def spy(self: EmbeddingStore, row: int, record: torch.Tensor) -> None:
        places[row] = record.data_ptr()
        read(self, row, record)

    monkeypatch.setattr(EmbeddingStore, "read_into", spy)
    [batch] = with_records([images([4, 1, 7])], StoredTargets(store), CPU)
    assert [places[row] for row in batch.rows] == [record.data_ptr() for record in batch.records]
    assert batch.records.is_contiguous()


def test_two_batches_are_read_ahead_and_no_more(store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    read, seen = EmbeddingStore.read_into, {row: threading.Event() for row in range(9)}
    taken: list[int] = []

    def spy(self: EmbeddingStore, row: int, record: torch.Tensor) -> None:
        read(self, row, record)
        seen[row].set()

    def loader() -> Iterator[ImageBatch]:
        for row in range(9):
            taken.append(row)
            yield images([row])

    monkeypatch.setattr(EmbeddingStore, "read_into", spy)
    batches = with_records(loader(), StoredTargets(store), CPU)
    for number in range(3):
        assert next(batches).rows == [number]
        assert all(seen[row].wait(60) for row in (number + 1, number + 2))  # though none has been asked for yet
        assert taken == list(range(number + 3))
        assert not seen[number + 3].is_set()


@pytest.mark.parametrize("offset", [0, 3, 4, SIZE - 1])  # the seed's bytes too
def test_a_damaged_record_comes_as_zeros_without_weight_and_by_name(store: EmbeddingStore, offset: int) -> None:
    damage(store, 4, offset)
    [batch] = with_records([images([3, 4, 5], ["a broken image"])], StoredTargets(store), CPU)
    assert batch.weights.tolist() == [1, 0, 1]
    assert batch.records.any(dim=1).tolist() == [True, False, True]
    assert batch.broken[0] == "a broken image"
    assert [f"image {store.ids[4].decode()!r}" in sentence for sentence in batch.broken[1:]] == [True]


def test_a_stand_in_has_no_weight_and_nothing_is_read_for_it(
    store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_allocate", lambda *shape: torch.full(shape[:2], 255, dtype=torch.uint8))
    [batch] = with_records([images([NO_ROW])], StoredTargets(store), CPU)
    assert batch.weights.tolist() == [0]
    assert batch.records.shape == (1, SIZE)
    assert not batch.records.any()


@pytest.mark.parametrize("name", ["float16", "int8", "int4", "pca3-int8", "pca3-int4"])
def test_zeros_decode_to_what_a_loss_can_leave_out(name: str) -> None:
    """0 times what is not finite would be NaN, in the loss and in its gradient."""
    projection = Projection(torch.randn(4), torch.eye(4)[:3], torch.rand(3) + 0.5, 1.0)
    codec = build_codec(name, 4, 2, projection if name.startswith("pca") else None)
    teacher = codec.decode(torch.zeros(2, codec.payload_size, dtype=torch.uint8))
    assert teacher.isfinite().all()
    for student in (torch.randn(2, 4, 2, 2, requires_grad=True), torch.zeros(2, 4, 2, 2, requires_grad=True)):
        objective = FeatureObjective({"mse": 1.0, "cosine": 1.0})
        loss = objective(student, teacher, torch.ones(2, 2, 2, dtype=torch.bool), torch.zeros(2))["loss"]
        loss.backward()
        assert loss.item() == 0
        assert student.grad is not None
        assert not student.grad.any()


def test_the_threads_end_with_the_loop(store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(batches: Iterator[ImageBatch]) -> Iterator[TrainBatch]:
        iterator = with_records(batches, StoredTargets(store), CPU)
        next(iterator)
        assert readers() > 0
        return iterator

    def failing() -> Iterator[ImageBatch]:
        yield from map(images, [[0], [1], [2]])
        raise RuntimeError("a worker died")

    for _ in begin(map(images, [[0], [1], [2], [3]])):
        pass
    assert readers() == 0
    iterator = begin(map(images, [[0], [1], [2], [3]]))
    iterator.close()
    assert readers() == 0
    iterator = begin(map(images, [[0], [1], [2], [3]]))
    del iterator
    assert readers() == 0
    iterator = begin(failing())
    with pytest.raises(RuntimeError, match="a worker died"):
        next(iterator)
    assert readers() == 0

    def fail(self: EmbeddingStore, row: int, record: torch.Tensor) -> None:
        raise OSError("Input/output error")

    monkeypatch.setattr(EmbeddingStore, "read_into", fail)
    with pytest.raises(OSError, match="Input/output error"):
        next(with_records(map(images, [[0], [1]]), StoredTargets(store), CPU))
    assert readers() == 0


def test_an_iterator_that_is_left_open_keeps_no_process_alive(store: EmbeddingStore) -> None:
    script = textwrap.dedent("""
        import sys
        sys.path.insert(0, sys.argv[1])
        from pathlib import Path
        import test_batches
        from efficientsam3.store.reader import EmbeddingStore

        store = test_batches.StoredTargets(EmbeddingStore(Path(sys.argv[2])))
        batches = test_batches.with_records(map(test_batches.images, [[0], [1], [2], [3]]), store, test_batches.CPU)
        print(next(batches).rows, test_batches.readers() > 0)
    """)
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(store.directory)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=200)
    assert done.stdout.split() == ["[0]", "True"]


@pytest.mark.parametrize("hflip", [0.0, 1.0])
def test_of_a_record_the_workers_read_the_seed_alone_and_only_where_it_has_an_effect(
    store_path: Path, photographs_path: Path, monkeypatch: pytest.MonkeyPatch, hflip: float
) -> None:
    store = EmbeddingStore(store_path / "embeddings")
    store.manifest = store.manifest.model_copy(update={"augmentation": Augmentation(hflip=hflip)})
    listing = list_images(photographs_path, "train", "sa1b")
    dataset, seeds = paired_images(listing, StoredTargets(store)), list[int]()
    read = EmbeddingStore.read_seed

    def spy(self: EmbeddingStore, row: int) -> int:
        seeds.append(read(self, row))
        return seeds[-1]

    def fail(self: EmbeddingStore, row: int, record: torch.Tensor) -> None:
        raise AssertionError(row)

    monkeypatch.setattr(EmbeddingStore, "read_seed", spy)
    monkeypatch.setattr(EmbeddingStore, "read_into", fail)
    items = [dataset[number] for number in range(len(dataset))]
    assert all(isinstance(item, ImageSample) for item in items)
    batch = collate_images(items)
    assert batch.rows == store.rows(listing.ids).tolist()
    monkeypatch.undo()
    expected = [int(store.decode(store.read(row)[None])[0]) for row in batch.rows]
    assert seeds == (expected if hflip else [])


def test_all_epochs_are_copied_in_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for CUDA's streams show in which one each copy is made, and that none is made for an epoch."""
    made, entered, waited = list[Mock](), list[Mock](), list[Mock]()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(Mock()) or made[-1])
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: entered.append(stream) or nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Mock(wait_stream=waited.append))
    device = torch.device("cuda")
    copying = copy_stream(device)
    for _ in range(2):
        batches = [Mock(tensors=[Mock()]) for _ in range(3)]
        assert list(on_device(batches, device, copying, lambda name: nullcontext())) == batches
        assert all(batch.to.call_count == batch.tensors[0].record_stream.call_count == 1 for batch in batches)
    assert made == [copying]
    assert entered == waited == [copying] * 6
    assert copy_stream(torch.device("cpu")) is None
