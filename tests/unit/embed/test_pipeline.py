"""What overlaps while embedding, and what that costs: events and counts, no times."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from efficientsam3.data.images import ImageStamp
from efficientsam3.data.loader import ImageBatch
from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.embed import pipeline
from efficientsam3.embed.pipeline import BUFFERS, Buffer, HostCopies, Pipeline
from efficientsam3.runtime.errors import UserError
from efficientsam3.store.gather import measure_batch
from efficientsam3.store.manifest import StoreManifest, write_store_manifest
from efficientsam3.store.records import pack_records
from efficientsam3.store.shards import Shard
from efficientsam3.store.statistics import ChannelStatistics, ShardStatistics, store_statistics
from efficientsam3.store.writer import BackgroundWriter, ShardWriter
from efficientsam3.testing.slow_device import SlowDevice

CPU = torch.device("cpu")
MANIFEST = StoreManifest(embed_dim=6, embed_size=4, preprocessing=Preprocessing(image_size=56, resize="pad"))
SIZE = MANIFEST.record_size
GRID = torch.linspace(-2, 3, 6 * 4 * 4).reshape(6, 4, 4)
BATCH = 3


class GreyTeacher:
    """Embeddings that differ with the grey of an image's first pixel; those of black images are not finite."""

    preprocessing = MANIFEST.preprocessing

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        greys = pixels[:, 0, 0, 0, None, None, None] + 1
        return torch.where(greys == 0, torch.inf, GRID * greys)


def image_batch(start: int, count: int = BATCH, black: tuple[int, ...] = ()) -> ImageBatch:
    """Images of other greys and content sizes each."""
    numbers = range(start, start + count)
    greys = torch.tensor([0 if number in black else number + 1 for number in numbers], dtype=torch.uint8)
    return ImageBatch(
        [f"sa_{number}" for number in numbers],
        greys[:, None, None, None].expand(-1, 3, 56, 56),
        torch.tensor([[56, 14 + number % 42] for number in numbers]).reshape(-1, 2),
        torch.tensor([3 * number - 5 for number in numbers], dtype=torch.int32),
        [-1] * count,
        [],
        stamps=[ImageStamp(number + 1, number) for number in numbers],
    )


def embed(
    directory: Path, batches: Iterator[ImageBatch] | list[ImageBatch], copies: HostCopies, **options: Any
) -> list[ImageBatch]:
    write_store_manifest(directory, MANIFEST)
    shard, codec = Shard(directory, 0), MANIFEST.build_codec(directory)
    pipe = Pipeline(GreyTeacher(), MANIFEST, codec, CPU, BATCH, copies)
    statistics = ShardStatistics(shard, MANIFEST.embed_dim)
    with (
        BackgroundWriter(shard, SIZE, statistics, queued=0, **options) as writer,
        closing(pipe.run(batches, writer)) as written,
    ):
        return list(written)


def expected(batches: list[ImageBatch]) -> dict[str, bytes]:
    """Records, image by image, without any of the code that is tested."""
    return {
        image_id: pack_records(
            np.array([seed], np.int32), (GRID * (grey / 127.5)).half().reshape(1, -1).view(torch.uint8).numpy()
        ).tobytes()
        for batch in batches
        for image_id, seed, grey in zip(
            batch.image_ids, batch.seeds.tolist(), batch.pixels[:, 0, 0, 0].tolist(), strict=True
        )
    }


def content(directory: Path) -> dict[str, bytes]:
    """Committed records in their order."""
    shard = Shard(directory, 0)
    values = shard.values_path.read_bytes()
    return {key.decode(): values[at * SIZE : (at + 1) * SIZE] for at, key in enumerate(shard.read_keys())}


def close(records: dict[str, bytes], others: dict[str, bytes]) -> bool:
    """Whether ids, order and seeds are the same, and payloads but for rounding."""
    pairs = zip(records.values(), others.values(), strict=True)
    return list(records) == list(others) and all(
        one[:4] == other[:4] and np.allclose(np.frombuffer(one[4:], "<f2"), np.frombuffer(other[4:], "<f2"), rtol=2e-3)
        for one, other in pairs
    )


@pytest.mark.parametrize("copies", [HostCopies(CPU), SlowDevice()])
def test_every_record_is_its_images_own_though_memory_is_used_again(tmp_path: Path, copies: HostCopies) -> None:
    batches = [image_batch(3 * number) for number in range(3 * BUFFERS)]
    batches += [image_batch(0, 0), image_batch(60, 2), image_batch(70, 3)]  # none readable; the end of a split
    assert [batch.image_ids for batch in embed(tmp_path, batches, copies)].count([]) == 1
    assert close(content(tmp_path), expected(batches))
    total = ChannelStatistics.nothing(MANIFEST.embed_dim)
    for batch in batches:
        for one in measure_batch(GreyTeacher()(batch.pixels / 127.5 - 1).half(), batch.content_sizes, MANIFEST):
            total = total.merge(one)
    found = store_statistics(tmp_path)
    assert found.cells == total.cells < 16 * sum(len(batch.image_ids) for batch in batches)
    torch.testing.assert_close(found.mean, total.mean, rtol=1e-3, atol=0)
    torch.testing.assert_close(found.m2, total.m2, rtol=1e-3, atol=0)


def test_a_batch_is_launched_before_the_one_before_it_is_waited_for_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    append = ShardWriter.append

    class Device(SlowDevice):
        def start(self, payloads: torch.Tensor, summary: torch.Tensor, buffer: Buffer) -> Callable[[], object]:
            number = sum(event.startswith("launch") for event in events)
            events.append(f"launch {number}")
            wait = super().start(payloads, summary, buffer)
            return lambda: (events.append(f"wait {number}"), wait())

    def spy(writer: ShardWriter, key: str, *rest: Any) -> None:
        if (number := int(key.removeprefix("sa_"))) % BATCH == 0:
            events.append(f"write {number // BATCH}")
        append(writer, key, *rest)

    monkeypatch.setattr(ShardWriter, "append", spy)
    embed(tmp_path, [image_batch(BATCH * number) for number in range(20)], Device())
    for number in range(19):
        assert events.index(f"launch {number + 1}") < events.index(f"wait {number}") < events.index(f"write {number}")


def test_a_disk_that_hangs_is_waited_for_with_a_few_batches_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, append, read = threading.Event(), ShardWriter.append, list[int]()

    def hang(*arguments: Any) -> None:
        assert goes_on.wait(60)
        append(*arguments)

    def batches() -> Iterator[ImageBatch]:
        for number in range(4 * BUFFERS):
            read.append(number)
            if number == BUFFERS:  # no buffer is left for this one
                threading.Timer(0.2, goes_on.set).start()
            assert number <= BUFFERS or goes_on.is_set()
            yield image_batch(BATCH * number)

    allocated: list[Buffer] = []

    class Device(SlowDevice):
        def allocate(self, *arguments: int) -> Buffer:
            allocated.append(super().allocate(*arguments))
            return allocated[-1]

    monkeypatch.setattr(ShardWriter, "append", hang)
    embed(tmp_path, batches(), Device())
    assert len(allocated) == BUFFERS
    assert {buffer.records.nbytes for buffer in allocated} == {BATCH * SIZE}
    assert len(content(tmp_path)) == 4 * BUFFERS * BATCH


def test_a_value_that_is_not_finite_ends_it_with_the_images_name_and_all_other_batches_stay(tmp_path: Path) -> None:
    batches = [image_batch(BATCH * number, black=(7,)) for number in range(9)]
    with pytest.raises(UserError, match=r"image 'sa_7' is not finite"):
        embed(tmp_path, batches, SlowDevice())
    # The one launched after it is whole, too.
    assert list(content(tmp_path)) == [f"sa_{number}" for number in (*range(6), *range(9, 12))]


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError, torch.OutOfMemoryError])
def test_what_was_launched_is_committed_whatever_ends_the_run(tmp_path: Path, error: type[BaseException]) -> None:
    def batches() -> Iterator[ImageBatch]:
        yield from (image_batch(BATCH * number) for number in range(7))
        raise error("stop")

    with pytest.raises(error, match="stop"):
        embed(tmp_path, batches(), SlowDevice())
    assert len(content(tmp_path)) == 7 * BATCH


def test_a_full_disk_ends_it_though_the_memory_waits_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = ShardWriter.append

    def fail(writer: ShardWriter, key: str, *rest: Any) -> None:
        if key == "sa_10":
            raise OSError(28, "No space left on device")
        append(writer, key, *rest)

    monkeypatch.setattr(ShardWriter, "append", fail)
    with pytest.raises(UserError, match="No space left on device"):
        embed(tmp_path, [image_batch(BATCH * number) for number in range(40)], SlowDevice(), commit_seconds=0)
    assert list(content(tmp_path)) == [f"sa_{number}" for number in range(10)]


class _CountWaits(TorchDispatchMode):
    """Counts what makes a host wait for its GPU: copies to the host, values that are read, and shapes that depend on
    them."""

    _VALUES = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = [each.device.type for each in (result, *args) if isinstance(each, torch.Tensor)]
        self.count += func in self._VALUES or (devices[0] == "cpu" and "cuda" in devices)
        return result


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("codec", ["float16", "int4"])
def test_a_batch_is_copied_from_the_gpu_at_once_and_no_image_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, count: int, codec: str
) -> None:
    manifest = MANIFEST.model_copy(update={"codec": codec})
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)  # there need not be a GPU
    with FakeTensorMode(allow_non_fake_inputs=True):
        embeddings = torch.empty(count, 6, 4, 4, device="cuda")
    monkeypatch.setattr(pipeline, "embed_batch", lambda *_: embeddings)
    pipe = Pipeline(GreyTeacher(), manifest, manifest.build_codec(tmp_path), CPU, count, HostCopies(CPU))
    with _CountWaits() as waits:
        pipe._launch(image_batch(0, count))
    assert waits.count == 2  # records, and what is known of them


def test_on_cuda_copies_have_a_stream_that_waits_for_the_batch_and_memory_that_waits_for_the_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The calls alone: there need not be a GPU."""
    calls, cuda = MagicMock(), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    for name in ("Stream", "Event", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(calls, name))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: calls.record_stream(len(tensor[0])))
    monkeypatch.setattr(torch.Tensor, "copy_", lambda target, source, non_blocking: calls.copy(non_blocking))
    copies = HostCopies(cuda)
    assert copies.ahead == 1
    buffer = Buffer(torch.empty(BATCH, SIZE, dtype=torch.uint8), torch.empty(BATCH, 13, dtype=torch.float64))
    with FakeTensorMode():
        payloads, summary = torch.empty(2, SIZE - 4, dtype=torch.uint8, device=cuda), torch.empty(2, 13, device=cuda)
    wait = copies.start(payloads, summary, buffer)
    inside = ["copy", "record_stream", "copy", "record_stream", "Event", "Event().record", "stream().__exit__"]
    assert [name for name, _, _ in calls.mock_calls] == [
        *("Stream", "current_stream", "Stream().wait_stream", "stream", "stream().__enter__"),
        *inside,
    ]
    assert [call.args for call in calls.copy.mock_calls] == [(True,), (True,)]
    assert [call.args for call in calls.record_stream.mock_calls] == [(SIZE,), (13,)]
    assert wait is calls.Event.return_value.synchronize
