"""Checking a dataset: what it has, what is broken, and what is duplicated."""

import filecmp
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from efficientsam3.data.check.files import Checked, CheckUnit, check_files
from efficientsam3.data.layouts import DATASETS, DEFAULT_DATASET, list_images
from efficientsam3.data.layouts.layout import Layout
from efficientsam3.data.listing import ImageListing
from efficientsam3.data.parallel import map_processes
from efficientsam3.data.problems import FIXABLE, Kind, Problem
from efficientsam3.data.split import SPLITS, Split
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import open_regular, write_text
from efficientsam3.runtime.progress import progress_bar

QUARANTINE = ".quarantine"  # hidden, so that listing and reorganising ignore it
PROBLEMS_FILE = "check_problems.tsv"
_HEADER = "kind\tfile\tdetail\n"
_IMAGES_PER_UNIT = 100


@dataclass
class CheckReport:
    """The state of a dataset."""

    images: dict[str, int]  # by split
    sizes: npt.NDArray[np.int32]  # (N, 2) height, width in pixels of every readable image
    bytes: int = 0  # of the readable images
    annotated: int = 0  # images with a readable annotation
    masks: int = 0
    problems: list[Problem] = field(default_factory=list)  # sorted
    quarantined: list[Path] = field(default_factory=list)  # where the files are now

    def counts(self) -> dict[Kind, int]:
        """Problems by kind, in the order of `Kind`."""
        found = Counter(problem.kind for problem in self.problems)
        return {kind: found[kind] for kind in Kind if found[kind]}


def check_dataset(
    data_path: Path,
    dataset: str = DEFAULT_DATASET,
    workers: int = 1,
    fix: bool = False,
    problems_file: Path | None = None,
) -> CheckReport:
    """Read every image and every annotation, and report what is wrong.

    Args:
        data_path: the dataset.
        dataset: its layout, a name in `DATASETS`.
        workers: processes.
        fix: move useless files to `data_path/.quarantine`, under the same relative path: broken images with
            their annotations, broken annotations, annotations without image. Nothing is deleted, and questionable
            masks and duplicates stay.
        problems_file: where to write all problems (columns kind, file, detail), by default
            `data_path/check_problems.tsv`.

    Raises:
        UserError: `data_path` does not have this layout, or is empty, or its instances file is not in COCO's format, or
            a file cannot be moved or written.
    """
    if workers < 1:
        raise UserError(f"--workers {workers} is too few: give 1 or more.")
    problems_file = problems_file or data_path / PROBLEMS_FILE
    layout = DATASETS[dataset]
    listings = {split: list_images(data_path, split, dataset) for split in SPLITS}
    total = sum(map(len, listings.values()))
    if total == 0:
        raise UserError(f"{data_path} has no images in either split: reorganise or name another folder.")
    if not os.access(problems_file.parent, os.W_OK):
        raise UserError(f"Cannot write {problems_file}: name another file with --report.")
    _check_replaceable(problems_file)
    report = CheckReport({split: len(listing) for split, listing in listings.items()}, np.zeros((0, 2), np.int32))
    digests = np.zeros(total, dtype=np.uint64)
    sizes = np.zeros((total, 2), dtype=np.int32)
    with progress_bar("Checking images", total) as advance:
        for part in map_processes(check_files, _units(data_path, listings, layout, report), workers, advance):
            _take(part, report, digests, sizes)
    report.sizes = sizes[digests != 0]
    paths = _Paths(listings)
    report.problems += _duplicates(digests, paths)
    report.problems += _in_both(listings)
    report.problems += layout.strays(data_path, listings)
    report.problems.sort()
    if fix:
        report.quarantined = _quarantine(data_path, layout, report.problems)
    _write_problems(problems_file, report.problems)
    return report


def _units(
    data_path: Path, listings: dict[Split, ImageListing], layout: Layout, report: CheckReport
) -> Iterator[CheckUnit]:
    first = 0
    for split, listing in listings.items():
        # Only when the split's turn comes, since some layouts read gigabytes here.
        annotation = layout.find_annotations(data_path, split, listing, report.problems)
        for start in range(0, len(listing), _IMAGES_PER_UNIT):
            rows = range(start, min(start + _IMAGES_PER_UNIT, len(listing)))
            yield CheckUnit(tuple(map(listing.path, rows)), tuple(map(annotation, rows)), first + start)
        first += len(listing)


def _take(part: Checked, report: CheckReport, digests: npt.NDArray[np.uint64], sizes: npt.NDArray[np.int32]) -> None:
    rows = slice(part.first, part.first + len(part.digests))
    digests[rows], sizes[rows] = part.digests, part.sizes
    report.bytes += part.bytes
    report.annotated += part.annotated
    report.masks += part.masks
    report.problems += part.problems


class _Paths:
    """Image files by their number over all splits."""

    def __init__(self, listings: dict[Split, ImageListing]) -> None:
        self._listings = list(listings.values())

    def __getitem__(self, number: int) -> Path:
        for listing in self._listings:
            if number < len(listing):
                return listing.path(number)
            number -= len(listing)
        raise IndexError(number)


def _duplicates(digests: npt.NDArray[np.uint64], paths: _Paths) -> list[Problem]:
    """Images whose files have the same content as an earlier one's."""
    order = np.argsort(digests, kind="stable")
    again = np.flatnonzero((digests[order][1:] == digests[order][:-1]) & (digests[order][1:] != 0))
    problems = []
    for position in again:
        earlier, later = paths[int(order[position])], paths[int(order[position + 1])]
        if filecmp.cmp(earlier, later, shallow=False):
            problems.append(Problem(Kind.DUPLICATE, later, f"as {earlier}"))
    return problems


def _in_both(listings: dict[Split, ImageListing]) -> list[Problem]:
    train, val = listings["train"], listings["val"]
    common = np.intersect1d(train.ids, val.ids, assume_unique=True)
    pairs = (
        (train.path(int(np.searchsorted(train.ids, key))), val.path(int(np.searchsorted(val.ids, key))))
        for key in common
    )
    return [Problem(Kind.BOTH_SPLITS, second, f"its id is also that of {first}") for first, second in pairs]


def _quarantine(data_path: Path, layout: Layout, problems: list[Problem]) -> list[Path]:
    moved = []
    for problem in problems:
        if problem.kind in FIXABLE:
            files = [problem.file]
            if problem.kind is Kind.BROKEN_IMAGE:
                files += layout.companions(data_path, problem.file)
            moved += [_set_aside(data_path, file) for file in files if file.exists()]
    return moved


def _set_aside(data_path: Path, file: Path) -> Path:
    target = data_path / QUARANTINE / file.relative_to(data_path)
    number = 0
    while target.exists():
        number += 1
        target = target.with_name(f"{file.name}.{number}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file.rename(target)
    except OSError as error:
        raise UserError(f"Cannot move {file} to {target}: {error.strerror}; check the folder's permissions.") from error
    return target


def _check_replaceable(path: Path) -> None:
    """A file that is there already must be an earlier check's."""
    if not os.path.lexists(path):
        return
    try:
        with open_regular(path) as file:
            earlier = file.readline(len(_HEADER)) == _HEADER.encode()
    except OSError as error:
        raise UserError(f"Cannot write {path} ({error.strerror}): name another file with --report.") from error
    if not earlier:
        raise UserError(f"{path} is no earlier list of problems, and would be lost: name another file with --report.")


def _write_problems(path: Path, problems: list[Problem]) -> None:
    rows = ((problem.kind.value, str(problem.file), problem.detail) for problem in problems)
    lines = ["\t".join(part.encode("unicode_escape").decode() for part in row) + "\n" for row in rows]
    write_text(path, _HEADER + "".join(lines))
