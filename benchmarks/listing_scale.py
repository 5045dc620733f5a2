"""Measure listing a million files: time, memory, and what each DataLoader worker adds.

    python benchmarks/listing_scale.py [--files 1100000] [--scratch DIR]

It first makes that many empty files, which takes a minute or more. Memory is that of whole processes, PyTorch included;
"private" is what a worker shares with no other process after reading every id. Linux only, because it reads /proc.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch.multiprocessing  # noqa: F401  (sends tensors through shared memory)
from rich.console import Console
from rich.table import Table

from efficientsam3.data.layouts import list_images
from efficientsam3.data.listing import ImageListing
from efficientsam3.runtime.device import describe_machine


def memory(field: str, file: str = "status") -> float:
    """Megabytes of a field of this process's /proc/self/FILE."""
    lines = Path(f"/proc/self/{file}").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def measure_listing(data_path: Path, connection: Connection) -> None:
    """Send seconds, peak megabytes before and after, and the number of files; runs in its own process."""
    before = memory("VmHWM")
    start = time.perf_counter()
    listing = list_images(data_path, "train")
    connection.send((time.perf_counter() - start, before, memory("VmHWM"), len(listing)))


def measure_worker(listing: ImageListing, connection: Connection) -> None:
    """Read every id, then send the private megabytes; runs in a worker."""
    total = sum(len(image_id) for image_id in listing.ids)
    connection.send((memory("Private", "smaps_rollup"), total))


def idle(_: Any, connection: Connection) -> None:
    """Send the private megabytes of a worker that reads no id."""
    connection.send((memory("Private", "smaps_rollup"), 0))


def in_process(method: str, target: Callable[[Any, Connection], None], argument: Any) -> tuple[float, ...]:
    """The numbers that `target` sends from its own process."""
    context: Any = get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(argument, sender))
    process.start()
    answer: tuple[float, ...] = receiver.recv()
    process.join()
    return answer


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_100_000)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(dir=args.scratch))
    os.environ["XDG_CACHE_HOME"] = str(scratch / "cache")
    try:
        run(scratch, args.files)
    finally:
        shutil.rmtree(scratch)


def run(scratch: Path, files: int) -> None:
    """Make the files, measure, and print the table."""
    folder = scratch / "data/images/train"
    folder.mkdir(parents=True)
    for number in range(files):
        os.close(os.open(folder / f"sa_{number}.jpg", os.O_CREAT | os.O_WRONLY))
    time.sleep(3)  # a folder that has just changed is not cached

    table = Table("what", "seconds", "MB", title=f"{files} files")
    for name in ("scan and sort", "from the cache"):
        seconds, before, after, count = in_process("spawn", measure_listing, scratch / "data")
        assert count == files
        table.add_row(name, f"{seconds:.2f}", f"peak {after:.0f}, {before:.0f} of them before")
    listing = list_images(scratch / "data", "train")
    table.add_row("the listing's arrays", "", f"{(listing.ids.nbytes + len(listing)) / 2**20:.1f}")
    for method in ("fork", "spawn"):
        base, with_listing = (in_process(method, target, listing)[0] for target in (idle, measure_worker))
        table.add_row(f"private to a worker, {method}", "", f"{with_listing:.1f}, without reading it {base:.1f}")
    Console().print(table)
    print(f"{describe_machine()}, in {scratch.parent}")


if __name__ == "__main__":
    main()
