"""What overlaps while embedding: wall time against the longest stage, with a teacher and a disk that sleep.

    python benchmarks/embed_overlap.py [--batches 60] [--seconds 0.1]

A batch takes the teacher and the disk a given time each. `beside the host`: the teacher computes as a GPU does, while
the host goes on; `in the host`: as a CPU. `teacher` and `disk` are measured alone: the teacher with everything that is
launched with it (encoding, statistics, copies), the disk with everything that writing takes. `serial` is the loop of
before: each batch is waited for, its statistics and its payload are copied image by image, and 16 records wait for the
disk at most. A ratio is a wall time divided by that of the longer stage.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from efficientsam3.data.images import ImageStamp
from efficientsam3.data.loader import ImageBatch
from efficientsam3.data.preprocess import SAM3_PREPROCESSING
from efficientsam3.embed.batches import check_storable, embed_batch
from efficientsam3.embed.pipeline import HostCopies, Pipeline
from efficientsam3.runtime.device import describe_machine
from efficientsam3.store.gather import measure_batch
from efficientsam3.store.manifest import StoreManifest
from efficientsam3.store.records import pack_records
from efficientsam3.store.shards import Shard
from efficientsam3.store.statistics import ShardStatistics
from efficientsam3.store.writer import BackgroundWriter, ShardWriter
from efficientsam3.testing.slow_device import SlowDevice

CPU = torch.device("cpu")
MANIFEST = StoreManifest(
    embed_dim=64, embed_size=16, preprocessing=SAM3_PREPROCESSING.model_copy(update={"image_size": 32})
)
CODEC = MANIFEST.build_codec(Path())
SIZE = MANIFEST.record_size
BATCH = 8
SERIAL_QUEUE = 16
Loop = Callable[[list[ImageBatch], float, bool, BackgroundWriter], None]


class SleepingTeacher:
    """Gives the same noise after a while."""

    preprocessing = MANIFEST.preprocessing

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._noise = torch.randn(BATCH, 64, 16, 16, generator=torch.Generator().manual_seed(0))

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        time.sleep(self._seconds)
        return self._noise


def image_batches(count: int) -> list[ImageBatch]:
    """Batches that have been read already."""
    return [
        ImageBatch(
            [f"sa_{number}" for number in range(start, start + BATCH)],
            torch.zeros(BATCH, 3, 32, 32, dtype=torch.uint8),
            torch.full((BATCH, 2), 32),
            torch.zeros(BATCH, dtype=torch.int32),
            [],
            [],
            stamps=[ImageStamp(1, 1)] * BATCH,
        )
        for start in range(0, count * BATCH, BATCH)
    ]


def overlapped(batches: list[ImageBatch], seconds: float, beside: bool, writer: BackgroundWriter) -> None:
    """The loop of `efficientsam3 embed`."""
    teacher = SleepingTeacher(0 if beside else seconds)
    copies = SlowDevice(seconds) if beside else HostCopies(CPU)
    for _ in Pipeline(teacher, MANIFEST, CODEC, CPU, BATCH, copies).run(batches, writer):
        pass


def serial(batches: list[ImageBatch], seconds: float, beside: bool, writer: BackgroundWriter) -> None:
    """The loop of before; it waits for the teacher at once, wherever that computes."""
    teacher = SleepingTeacher(seconds)
    for batch in batches:
        embeddings = embed_batch(teacher, batch, CPU)
        check_storable(batch, embeddings)
        payloads = CODEC.encode(embeddings)
        statistics = measure_batch(CODEC.decode(payloads), batch.content_sizes, MANIFEST)
        records = pack_records(batch.seeds.numpy(), payloads.numpy())
        for image_id, *rest in zip(batch.image_ids, records, statistics, batch.stamps, strict=True):
            writer.append(image_id, *rest)


def teacher_alone(batches: list[ImageBatch], seconds: float, beside: bool, writer: BackgroundWriter) -> None:
    """The loop of `efficientsam3 embed`, with nothing written."""

    class Nowhere:
        def append(self, *_: Any) -> None: ...

        def after(self, done: Callable[[], object]) -> None:
            done()

    overlapped(batches, seconds, beside, Nowhere())  # type: ignore[arg-type]


def disk_alone(batches: list[ImageBatch], seconds: float, beside: bool, writer: BackgroundWriter) -> None:
    """Records that are ready."""
    payloads = CODEC.encode(SleepingTeacher(0)._noise)
    statistics = measure_batch(CODEC.decode(payloads), batches[0].content_sizes, MANIFEST)
    records = pack_records(np.zeros(BATCH, np.int32), payloads.numpy())
    for batch in batches:
        for image_id, *rest in zip(batch.image_ids, records, statistics, batch.stamps, strict=True):
            writer.append(image_id, *rest)


@contextmanager
def slow_disk(seconds: float) -> Iterator[None]:
    """Writing a record sleeps for a while first."""
    append = ShardWriter.append

    def slow(writer: ShardWriter, *arguments: Any) -> None:
        time.sleep(seconds)
        append(writer, *arguments)

    with patch.object(ShardWriter, "append", slow):
        yield


def wall_time(loop: Loop, count: int, teacher: float, disk: float, beside: bool) -> float:
    """Seconds from the first batch to the last commit."""
    batches = image_batches(count)
    with tempfile.TemporaryDirectory() as folder, slow_disk(disk / BATCH):
        shard = Shard(Path(folder), 0)
        queued = SERIAL_QUEUE if loop is serial else 0
        writer = BackgroundWriter(shard, SIZE, ShardStatistics(shard, MANIFEST.embed_dim), queued=queued)
        start = time.perf_counter()
        with writer:
            loop(batches, teacher, beside, writer)
        return time.perf_counter() - start


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=0.1, help="of the longer stage, for a batch")
    args = parser.parse_args()
    torch.set_num_threads(1)
    wall_time(overlapped, 2, 0, 0, True)  # what the first run of everything takes
    table = Table(
        "teacher computes", "teacher s", "disk s", "serial s", "ratio", "overlapped s", "ratio",
        title=f"{args.batches} batches of {BATCH} records of {SIZE} bytes",
    )  # fmt: skip
    for beside in (True, False):
        for teacher, disk in ((1.0, 0.5), (1.0, 1.0), (0.5, 1.0)):
            work = (args.batches, teacher * args.seconds, disk * args.seconds, beside)
            alone = [wall_time(loop, *work) for loop in (teacher_alone, disk_alone)]
            walls = [wall_time(loop, *work) for loop in (serial, overlapped)]
            cells = [cell for wall in walls for cell in (f"{wall:.2f}", f"{wall / max(alone):.2f}")]
            table.add_row("beside the host" if beside else "in the host", *(f"{each:.2f}" for each in alone), *cells)
    Console(width=110).print(table)
    print(describe_machine())


if __name__ == "__main__":
    main()
