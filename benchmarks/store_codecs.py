"""Measure bytes, error and speed of each codec on a store's own embeddings.

    python benchmarks/store_codecs.py STORE [--count 64]

Projections are fitted on the first half of the embeddings; everything is measured on the second.
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from efficientsam3.runtime.device import describe_machine
from efficientsam3.store.advise import measure_codecs


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="a float16 store")
    parser.add_argument("--count", type=int, default=64)
    args = parser.parse_args()
    table = Table(title=f"Codecs on {args.count} embeddings of {args.store}")
    for column in ("codec", "bytes", "times smaller", "relative error", "cosine", "encode/s", "decode/s"):
        table.add_column(column, no_wrap=True)
    for item in measure_codecs(args.store, args.count):
        figures = (f"{item.ratio:.2f}", f"{item.relative_error:.4f}", f"{item.cosine:.5f}")
        table.add_row(item.codec, str(item.record_size), *figures, f"{item.encode_rate:.1f}", f"{item.decode_rate:.1f}")
    Console(width=100).print(table)
    print(f"{describe_machine()}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
