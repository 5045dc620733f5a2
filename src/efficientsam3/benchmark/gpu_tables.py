"""The measurements of a GPU as a table for a terminal, and as JSON."""

import json
from collections.abc import Iterator
from dataclasses import asdict

from rich.table import Table

from efficientsam3.benchmark.gpu import GpuReport, Row
from efficientsam3.runtime.tables import plain_table


def gpu_table(report: GpuReport) -> Table:
    """One row for each measurement, under the card and the versions."""
    table = plain_table(
        ", ".join(f"{name} {value}" if name != "card" else value for name, value in report.machine.items()),
        ["", "batch", "images/s", "GFLOP an image", "of the peak", "peak GB", "notes"],
        f"Peak: {report.peak:.3g} TFLOP/s, measured here with a product of square matrices in {report.dtype}. "
        f"GFLOP: of convolutions and products alone; a training counts its forward pass three times. Peak GB: what "
        f"PyTorch gave out at most. {report.seconds:.0f} s in all.",
    )
    table.columns[-1].justify = "left"
    table.columns[-1].no_wrap = False
    for row in report.rows:
        table.add_row(*_cells(row, report.share(row)))
    return table


def _cells(row: Row, share: float | None) -> Iterator[str]:
    yield row.subject
    yield str(row.batch or "")
    yield "" if row.rate is None else f"{row.rate:.1f}"
    yield "" if row.gflops is None else f"{row.gflops:.0f}"
    yield "" if share is None else f"{100 * share:.1f} %"
    yield "" if row.memory is None else f"{row.memory / 1e9:.1f}"
    yield row.note


def gpu_json(report: GpuReport) -> str:
    """Everything in the report, with the tracebacks of what failed."""
    return json.dumps(asdict(report), indent=2) + "\n"
