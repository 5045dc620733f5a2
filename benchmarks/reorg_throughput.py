"""Compare reorganising tars with `tar -xf` of the same tars.

    python benchmarks/reorg_throughput.py TARS [--rounds 5] [--scratch DIR]

The two take turns, so that a busy machine slows both; each starts with an empty output, after a sync. The table shows
medians; the ratios below it compare the two of each round.
"""

import argparse
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from efficientsam3.data.sa1b.reorganise import reorganise
from efficientsam3.runtime.device import describe_machine


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes, started when no write is pending."""
    subprocess.run(["sync"], check=True)
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def extract(tars: list[Path], output: Path) -> None:
    """Unpack the tars with tar, as one would without this project."""
    output.mkdir()
    for tar in tars:
        subprocess.run(["tar", "-xf", tar, "-C", output], check=True)


def one_round(source: Path, tars: list[Path], scratch: Path, workers: int) -> tuple[float, float]:
    """Seconds of tar and of reorganising."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    try:
        plain = timed(lambda: extract(tars, folder / "plain"))
        shutil.rmtree(folder / "plain")
        return plain, timed(lambda: reorganise(source, folder / "ours", workers=workers))
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tars", type=Path, help="folder of tars in SA-1B's shape")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()), help="where to write")
    args = parser.parse_args()

    tars = sorted(args.tars.glob("*.tar"))
    megabytes = sum(tar.stat().st_size for tar in tars) / 1e6
    rounds = [one_round(args.tars, tars, args.scratch, args.workers) for _ in range(args.rounds)]
    plain, ours = zip(*rounds, strict=True)

    table = Table("what", "seconds, median", "MB/s", title=f"{len(tars)} tars, {megabytes:.0f} MB")
    for name, seconds in (("tar -xf", plain), (f"reorganise, {args.workers} worker(s)", ours)):
        median = statistics.median(seconds)
        table.add_row(name, f"{median:.2f}", f"{megabytes / median:.0f}")
    ratios = sorted(a / b for a, b in rounds)
    Console().print(table)
    print(f"throughput ratio: median {statistics.median(ratios):.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f}")
    print(f"{describe_machine()}, scratch in {args.scratch}")


if __name__ == "__main__":
    main()
