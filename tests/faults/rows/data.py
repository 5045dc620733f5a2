"""Checking a dataset on a disk that fails."""

from functools import partial

from faults.fault import Fault, Place, Run, refused, snapshot, works
from faults.system import fail_file, small_disk


def _images_fail(place: Place, run: Run) -> None:
    before = snapshot(place.data)
    inject = partial(fail_file, ".jpg", "read")
    works("unreadable", code=1)(place, run("data check {data} --fix --workers 1", inject=inject))
    after = snapshot(place.data)
    assert before.items() <= after.items(), "images were moved"


def _full(place: Place, run: Run) -> None:
    for path in place.images.glob("*.jpg"):
        path.write_bytes(b"")  # a long list of problems
    with small_disk(place.root / "disk", 4096) as disk:
        (disk / "filled").write_bytes(bytes(4096))
        refused("problems.tsv")(
            place, run(["data", "check", place.data, "--workers", 1, "--report", disk / "problems.tsv"])
        )


ROWS = [
    Fault("EIO7", "EIO while reading images: data check --fix moves nothing", _images_fail),
    Fault("data-h1", "data check: report onto a full disk", _full, slow=True),
]
