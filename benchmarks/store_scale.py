"""Measure the time and memory of opening a store of many tiny records.

    python benchmarks/store_scale.py [--records 1100000 11000000] [--shards 8] [--scratch DIR]

Each is opened in its own process; memory is what opening adds to that process at its peak.
"""

import argparse
import resource
import shutil
import tempfile
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from rich.console import Console
from rich.table import Table

from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.runtime.device import describe_machine
from efficientsam3.store.manifest import StoreManifest, write_store_manifest
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.store.shards import Shard

MANIFEST = StoreManifest(embed_dim=1, embed_size=1, preprocessing=Preprocessing(image_size=14))


def open_store(directory: Path, connection: Connection) -> None:
    """Send seconds, CPU seconds, peak megabytes and the number of records; runs in its own process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    store = EmbeddingStore(directory)
    seconds = (time.perf_counter() - start, time.process_time() - cpu)
    connection.send((*seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, len(store)))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[1_100_000, 11_000_000])
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    context = get_context("spawn")
    table = Table("records", "seconds", "CPU seconds", "MB", title=f"Opening a store of {args.shards} shards")
    for count in args.records:
        directory = Path(tempfile.mkdtemp(dir=args.scratch))
        try:
            write_store_manifest(directory, MANIFEST)
            for rank in range(args.shards):
                numbers, shard = range(rank, count, args.shards), Shard(directory, rank)
                shard.keys_path.write_text("".join(f"sa_{number}\n" for number in numbers))
                shard.values_path.write_bytes(bytes(MANIFEST.record_size * len(numbers)))
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=open_store, args=(directory, sender))
            process.start()
            seconds, cpu, megabytes, found = receiver.recv()
            process.join()
            assert found == count
            table.add_row(str(count), f"{seconds:.2f}", f"{cpu:.2f}", f"{megabytes:.0f}")
        finally:
            shutil.rmtree(directory)
    Console(width=100).print(table)
    print(describe_machine())


if __name__ == "__main__":
    main()
