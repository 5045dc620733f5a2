"""What overlaps while embedding: wall time against the longest stage, with a teacher and a disk that sleep.

    python benchmarks/embed_overlap.py [--batches 50] [--seconds 0.1] [--rounds 3]

A batch takes the teacher, the copy to the host and the disk a given time each. `beside the host`: teacher and copy are
at work while the host goes on, as a GPU is; `in the host`: the teacher is a CPU, and there is no copy. Stages are
measured alone: the teacher with all that is launched with it (encoding, statistics), the disk with all that writing
takes. `serial` is the loop of before: each batch is waited for and copied before the next one is launched, and 16
records wait for the disk at most. All take turns, and the least of the rounds counts, since other programs only add to
it. A ratio is a wall time divided by that of the longest stage.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
BATCH = 32
SERIAL_QUEUE = 16
Loop = Callable[[list[ImageBatch], "Stages", BackgroundWriter], None]


@dataclass(frozen=True)
class Stages:
    """Seconds that a batch takes in each."""

    teacher: float
    copy: float
    disk: float
    beside: bool  # the host


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


def overlapped(batches: list[ImageBatch], stages: Stages, writer: BackgroundWriter) -> None:
    """The loop of `efficientsam3 embed`."""
    teacher = SleepingTeacher(0 if stages.beside else stages.teacher)
    copies = SlowDevice(stages.teacher, stages.copy) if stages.beside else HostCopies(CPU)
    for _ in Pipeline(teacher, MANIFEST, CODEC, CPU, BATCH, copies).run(batches, writer):  # type: ignore[arg-type]
        pass


def serial(batches: list[ImageBatch], stages: Stages, writer: BackgroundWriter) -> None:
    """The loop of before; it waits for the teacher at once, wherever that computes."""
    teacher = SleepingTeacher(stages.teacher)
    for batch in batches:
        embeddings = embed_batch(teacher, batch, CPU)  # type: ignore[arg-type]
        check_storable(batch, embeddings)
        payloads = CODEC.encode(embeddings)
        statistics = measure_batch(CODEC.decode(payloads), batch.content_sizes, MANIFEST)
        time.sleep(stages.copy)
        records = pack_records(batch.seeds.numpy(), payloads.numpy())
        for image_id, *rest in zip(batch.image_ids, records, statistics, batch.stamps, strict=True):
            writer.append(image_id, *rest)


def teacher_alone(batches: list[ImageBatch], stages: Stages, writer: BackgroundWriter) -> None:
    """The loop of `efficientsam3 embed`, with nothing written."""

    class Nowhere:
        def append(self, *_: Any) -> None: ...

        def after(self, done: Callable[[], object]) -> None:
            done()

    overlapped(batches, stages, Nowhere())  # type: ignore[arg-type]


def disk_alone(batches: list[ImageBatch], stages: Stages, writer: BackgroundWriter) -> None:
    """Records that are ready."""
    payloads = CODEC.encode(SleepingTeacher(0)._noise)
    statistics = measure_batch(CODEC.decode(payloads), batches[0].content_sizes, MANIFEST)
    records = pack_records(np.zeros(BATCH, np.int32), payloads.numpy())
    for batch in batches:
        for image_id, *rest in zip(batch.image_ids, records, statistics, batch.stamps, strict=True):
            writer.append(image_id, *rest)


@contextmanager
def slow_disk(seconds: float) -> Iterator[None]:
    """Writing sleeps for a while before the first record of each batch."""
    append = ShardWriter.append

    def slow(writer: ShardWriter, key: str, *rest: Any) -> None:
        if int(key.removeprefix("sa_")) % BATCH == 0:
            time.sleep(seconds)
        append(writer, key, *rest)

    with patch.object(ShardWriter, "append", slow):
        yield


def wall_time(loop: Loop, count: int, stages: Stages) -> float:
    """Seconds from the first batch to the last commit."""
    batches = image_batches(count)
    with tempfile.TemporaryDirectory() as folder, slow_disk(stages.disk):
        shard = Shard(Path(folder), 0)
        queued = SERIAL_QUEUE if loop is serial else 0
        writer = BackgroundWriter(shard, SIZE, ShardStatistics(shard, MANIFEST.embed_dim), queued=queued)
        start = time.perf_counter()
        with writer:
            loop(batches, stages, writer)
        return time.perf_counter() - start


LOOPS: tuple[Loop, ...] = (teacher_alone, disk_alone, serial, overlapped)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=0.1, help="of the longer stage, for a batch")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    wall_time(overlapped, 2, Stages(0, 0, 0, True))  # what the first run of everything takes
    table = Table(
        "teacher computes", "teacher s", "copy s", "disk s", "serial s", "ratio", "overlapped s", "ratio",
        title=f"{args.batches} batches of {BATCH} records of {SIZE} bytes",
    )  # fmt: skip
    for beside in (True, False):
        for teacher, disk in ((1.0, 0.6), (1.0, 1.0), (0.6, 1.0)):
            copy = 0.4 if beside else 0.0
            stages = Stages(teacher * args.seconds, copy * args.seconds, disk * args.seconds, beside)
            copies = stages.copy * args.batches
            rounds = [[wall_time(loop, args.batches, stages) for loop in LOOPS] for _ in range(args.rounds)]
            *alone, one_by_one, at_once = map(min, zip(*rounds, strict=True))
            walls = (one_by_one, at_once)
            cells = [cell for wall in walls for cell in (f"{wall:.2f}", f"{wall / max(alone):.2f}")]
            times = (alone[0], copies, alone[1])
            table.add_row("beside the host" if beside else "in the host", *(f"{each:.2f}" for each in times), *cells)
    Console(width=110).print(table)
    print(describe_machine())


if __name__ == "__main__":
    main()
