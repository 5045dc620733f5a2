"""Flags of the export."""

from faults.fault import Fault, Place, Run, refused
from faults.rows.store import ends, export_with


def _samples(place: Place, run: Run) -> None:
    line = export_with(place, "--check-saved-embed", "--check-samples", -5)
    refused("-5")(place, run(line))


def _dry_run(place: Place, run: Run) -> None:
    ends(place, run(export_with(place, "--dry-run", 0)))


ROWS = [
    Fault("F1", "--check-samples -5", _samples, slow=True),
    Fault("export-h1", "--dry-run 0", _dry_run, slow=True),
]
