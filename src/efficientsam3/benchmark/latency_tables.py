"""Latencies as a table for a terminal."""

from collections.abc import Sequence

from rich.table import Table

from efficientsam3.benchmark.latency import Latency
from efficientsam3.benchmark.parameter_tables import billions, millions
from efficientsam3.benchmark.requests import EAGER, WAYS
from efficientsam3.runtime.tables import plain_table


def latency_table(latencies: Sequence[Latency], rounds: int) -> Table:
    """One row for each student and head: its size, and for each way the time, and how many times faster than eager."""
    ways = [way for way in WAYS if any(way in each.milliseconds for each in latencies)]
    table = plain_table(
        "One image: ms (times faster than eager)",
        [
            "student",
            "head",
            "parameters",
            "GMACs",
            *(way.replace(" ", "\n") for way in ways),
            "peak MB,\neager",
            "peak MB,\nfused",
        ],
        f"Medians of {rounds} rounds, each of which ran every way once. Peak: beyond what was taken before.",
    )
    for each in latencies:
        peaks = [f"{each.megabytes[way]:.0f}" if way in each.megabytes else "" for way in (EAGER, "fused")]
        cells = [_cell(each, way) for way in ways]
        table.add_row(
            each.size.name, each.head, millions(each.size.parameters), billions(each.size.macs), *cells, *peaks
        )
    return table


def _cell(latency: Latency, way: str) -> str:
    milliseconds = latency.milliseconds[way]
    ratio = latency.milliseconds[EAGER] / milliseconds
    return f"{milliseconds:.0f}" if way == EAGER else f"{milliseconds:.0f} ({ratio:.2f}x)"
