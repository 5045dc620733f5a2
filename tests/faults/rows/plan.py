"""Flags of the plan."""

from functools import partial

from faults.fault import Fault, Place, Run, refused
from faults.rows.store import export_with


def _batches(count: int, place: Place, run: Run) -> None:
    line = export_with(place, "--batches", count)
    refused(str(count), "batches")(place, run(["plan", *line[1:]]))


ROWS = [
    Fault("F2", "--batches 0", partial(_batches, 0), slow=True),
    Fault("F2b", "--batches -3", partial(_batches, -3), slow=True),
]
