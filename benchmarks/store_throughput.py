"""Compare reading a store with os.pread of the same bytes, and writing one with `dd conv=fsync`.

    python benchmarks/store_throughput.py [--records 128] [--scratch DIR]

Records have SAM3's size in codec float16. Before each reading, the files are evicted from the page cache
(posix_fadvise), which is not timed. The ways take turns, and the table shows medians. Linux only.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from efficientsam3.data.loader import ImageBatch
from efficientsam3.data.preprocess import SAM3_PREPROCESSING
from efficientsam3.runtime.device import describe_machine
from efficientsam3.store.manifest import StoreManifest, write_store_manifest
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.store.shards import Shard
from efficientsam3.store.writer import BackgroundWriter
from efficientsam3.train.batches import with_records
from efficientsam3.train.targets import StoredTargets

MANIFEST = StoreManifest(embed_dim=1024, embed_size=72, preprocessing=SAM3_PREPROCESSING)
SIZE = MANIFEST.record_size
ROUNDS = 5
BATCH = 4


def drop_cache(directory: Path) -> None:
    """Evict the store's files from the page cache."""
    for path in directory.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def write_store(directory: Path, records: list[np.ndarray], count: int) -> None:
    """Write a store as the embedding run does."""
    write_store_manifest(directory, MANIFEST)
    with BackgroundWriter(Shard(directory, 0), SIZE) as writer:
        for number in range(count):
            writer.append(f"sa_{number}", records[number % len(records)])


def write_dd(source: Path, directory: Path, count: int) -> None:
    """Write the same bytes with dd."""
    command = ["dd", f"if={source}", f"of={directory / 'dd.bin'}", f"bs={SIZE}", f"count={count}", "conv=fsync"]
    subprocess.run(command, check=True, capture_output=True)


def read_store(directory: Path, order: list[int], checksums: bool) -> None:
    """Read a store's records in a random order, into one buffer."""
    store, buffer = EmbeddingStore(directory, checksums=checksums), torch.empty(SIZE, dtype=torch.uint8)
    for row in order:
        store.read_into(row, buffer)


def read_plain(directory: Path, order: list[int]) -> None:
    """Read the same records with os.pread."""
    descriptor = os.open(directory / "rank0-values.bin", os.O_RDONLY)
    for row in order:
        os.pread(descriptor, SIZE, row * SIZE)
    os.close(descriptor)


def read_batches(directory: Path, order: list[int]) -> None:
    """Read batches as training does: by threads."""
    targets = StoredTargets(EmbeddingStore(directory, checksums=False))
    batches = (order[start : start + BATCH] for start in range(0, len(order), BATCH))
    nothing = torch.empty(0)
    images = (ImageBatch([""] * len(rows), nothing, nothing, nothing, rows, []) for rows in batches)
    for _ in with_records(images, targets, torch.device("cpu")):
        pass


def median_rates(
    ways: dict[str, Callable[[], None]], size: int, prepare: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """MB/s of each way, in alternating rounds; `prepare` runs before each and is not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            prepare()
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return {name: size / 1e6 / statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=128)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    scratch, count = Path(tempfile.mkdtemp(dir=args.scratch)), args.records
    try:
        records = [np.random.default_rng(seed).integers(0, 256, SIZE, dtype=np.uint8) for seed in range(4)]
        source = scratch / "source.bin"
        with source.open("wb") as file:
            for number in range(count):
                file.write(records[number % 4].tobytes())
        order = np.random.default_rng(0).permutation(count).tolist()
        rates = run(scratch, source, records, order)
    finally:
        shutil.rmtree(scratch)
    table = Table("what", "MB/s", "ratio to the first", title=f"{count} records of {SIZE} bytes, {ROUNDS} rounds")
    for group in rates:
        baseline = next(iter(group.values()))
        for name, rate in group.items():
            table.add_row(name, f"{rate:.0f}", f"{rate / baseline:.2f}")
    Console(width=100).print(table)
    print(describe_machine())


def run(scratch: Path, source: Path, records: list[np.ndarray], order: list[int]) -> tuple[dict[str, float], ...]:
    """The rates of writing and of reading."""
    count, plain, store = len(order), scratch / "dd", scratch / "store"
    plain.mkdir()

    def fresh_store() -> None:
        shutil.rmtree(store, ignore_errors=True)
        write_store(store, records, count)

    writing = median_rates(
        {"write, dd conv=fsync": lambda: write_dd(source, plain, count), "write, store": fresh_store}, count * SIZE
    )
    reading = median_rates(
        {
            "read, os.pread": lambda: read_plain(store, order),
            "read, store without checksums": lambda: read_store(store, order, False),
            "read, store": lambda: read_store(store, order, True),
            "read, batches as training, without checksums": lambda: read_batches(store, order),
        },
        count * SIZE,
        lambda: drop_cache(store),
    )
    return writing, reading


if __name__ == "__main__":
    main()
