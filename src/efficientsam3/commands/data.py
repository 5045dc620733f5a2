"""`efficientsam3 data`: what a dataset holds and what is wrong with it, and further views of its images."""

import sys
from typing import TYPE_CHECKING

from efficientsam3.data.requests import CheckRequest, ViewsRequest

if TYPE_CHECKING:
    from rich.table import Table

    from efficientsam3.data.check.run import CheckReport

_BAR_WIDTH = 40


def _check(request: CheckRequest) -> None:
    """Read every file and report; exit code 1 if anything is wrong."""
    from rich.table import Table

    from efficientsam3.data.check.run import PROBLEMS_FILE, QUARANTINE, check_dataset
    from efficientsam3.runtime.console import Console

    report = check_dataset(request.data_path, request.dataset, request.workers, request.fix, request.report)
    console = Console()
    console.print(_contents(report))
    console.print(_histogram(report))
    if not report.problems:
        print("No problems found.")
        return
    problems = Table("problem", "files or masks", title="Problems")
    for kind, count in report.counts().items():
        problems.add_row(kind.value, str(count))
    console.print(problems)
    print(f"Each of them: {request.report or request.data_path / PROBLEMS_FILE}")
    if request.fix:
        print(f"{len(report.quarantined)} files moved to {request.data_path / QUARANTINE}")
    sys.exit(1)


def _contents(report: "CheckReport") -> "Table":
    from rich.table import Table

    table = Table("what", "count", title="Contents")
    for split, count in report.images.items():
        table.add_row(f"images, {split}", str(count))
    table.add_row("readable images", f"{len(report.sizes)}, {report.bytes / 1e6:.1f} MB")
    table.add_row("of them with annotations", str(report.annotated))
    table.add_row("masks", f"{report.masks}, {report.masks / max(report.annotated, 1):.1f} an image")
    return table


def _histogram(report: "CheckReport") -> "Table":
    """Images by their longer side, in steps of a factor of 2 ** 0.5."""
    import numpy as np
    from rich.table import Table

    table = Table("longer side, pixels", "images", "", title="Sizes")
    sides = report.sizes.max(axis=1)
    steps = np.floor(2 * np.log2(sides)).astype(int)
    values, counts = np.unique(steps, return_counts=True)
    for value, count in zip(values, counts, strict=True):
        low, high = np.ceil(2 ** (value / 2)), np.ceil(2 ** ((value + 1) / 2)) - 1
        bar = "█" * max(1, round(_BAR_WIDTH * count / counts.max()))
        table.add_row(f"{low:.0f} to {high:.0f}", str(count), bar)
    return table


def _views(request: ViewsRequest) -> None:
    """Write a dataset with mirrored and cropped views of the training images beside them; a second run goes on.

    Embedded once, they are so many more images to learn from.
    """
    from efficientsam3.data.views import ViewSettings, write_views

    settings = ViewSettings(request.views, request.smallest, request.seed)
    report = write_views(request.data_path, request.output, settings, request.dataset, request.workers)
    for sentence in report.left_out:
        print(f"left out: {sentence}")
    print(f"{report.images} images written to {request.output}, {len(report.left_out)} left out")


ACTIONS = {"check": (CheckRequest, _check), "views": (ViewsRequest, _views)}
