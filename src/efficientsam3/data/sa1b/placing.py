"""One process's share of reorganising: putting a tar, or some pairs of a folder, into place."""

import errno
import filecmp
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from efficientsam3.data.parallel import Advance
from efficientsam3.data.sa1b.pairs import (
    KINDS,
    Destination,
    Half,
    PairWriter,
    Refused,
    check_content,
    check_file,
    is_in_place,
    staged_path,
)
from efficientsam3.data.sa1b.tars import Member, read_members
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import fsync_directory, open_regular

Mode = Literal["link", "move", "copy"]
MEGABYTE = 1_000_000


class Skipped(NamedTuple):
    """One file that was skipped."""

    source: str  # the tar or folder
    name: str  # the file's name in it; "" for the whole source
    reason: str


@dataclass
class ReorgReport:
    """What happened; `placed` and `kept` count pairs."""

    placed: int = 0
    kept: int = 0  # in place already
    skipped: list[Skipped] = field(default_factory=list)

    def add(self, other: "ReorgReport") -> None:
        """Add what another process did."""
        self.placed += other.placed
        self.kept += other.kept
        self.skipped += other.skipped


@dataclass(frozen=True)
class TarUnit:
    """A tar to read into place."""

    destination: Destination
    tar: Path
    delete: bool  # once all of it is in place and on disk


@dataclass(frozen=True)
class FolderUnit:
    """Pairs of one folder to bring into place."""

    destination: Destination
    folder: Path
    stems: tuple[str, ...]
    mode: Mode


def place_tar(unit: TarUnit, advance: Advance) -> ReorgReport:
    """Read a tar once, each pair straight into place.

    Args:
        unit: the tar.
        advance: called with the number of megabytes just read.
    """
    report = ReorgReport()
    skip = _skipper(report, unit.tar)
    pairs = PairWriter(unit.destination, _rename, skip)
    done = 0
    try:
        for member in read_members(unit.tar, skip):
            try:
                _take_member(member, pairs, compare=unit.delete)
            except Refused as reason:
                skip(member.name, str(reason))
            if member.offset >= (done + 1) * MEGABYTE:
                advance(member.offset // MEGABYTE - done)
                done = member.offset // MEGABYTE
    except OSError as error:  # from reading: errors in writing are UserErrors
        skip("", f"cannot be read ({error.strerror})")
    for staged in pairs.close():
        os.unlink(staged)
    report.placed, report.kept = pairs.placed, pairs.kept
    if unit.delete and not report.skipped:
        try:
            _sync(pairs.places)
            unit.tar.unlink()
        except OSError as error:
            skip("", f"not deleted ({error.strerror}: {error.filename})")
    return report


def _sync(places: list[str]) -> None:
    """Make files and their names survive a power cut. `sync` alone would hide what could not be written."""
    os.sync()
    for place in places:
        _fsync(place)


def _fsync(place: str) -> None:
    with open(place, "rb") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            error.filename = place
            raise


def place_folder(unit: FolderUnit, advance: Advance) -> ReorgReport:
    """Link, move or copy pairs.

    Args:
        unit: the pairs.
        advance: called with the number of stems just done.
    """
    report = ReorgReport()
    skip = _skipper(report, unit.folder)
    publish = {"link": _link, "move": _move, "copy": _copy}[unit.mode]
    pairs = PairWriter(unit.destination, publish, skip)
    for stem in unit.stems:
        for suffix in KINDS:
            try:
                _take_file(os.path.join(unit.folder, stem + suffix), stem, suffix, unit.mode, pairs)
            except FileNotFoundError:
                continue  # the other half is reported when `pairs` is closed
            except Refused as reason:
                skip(stem + suffix, str(reason))
            except OSError as error:
                skip(stem + suffix, f"cannot be read ({error.strerror})")
        advance(1)
    pairs.close()
    report.placed, report.kept = pairs.placed, pairs.kept
    return report


def _skipper(report: ReorgReport, source: Path) -> Callable[[str, str], None]:
    return lambda name, reason: report.skipped.append(Skipped(str(source), name, reason))


def _take_member(member: Member, pairs: PairWriter, compare: bool) -> None:
    stem, suffix = os.path.splitext(member.name)
    if suffix not in KINDS:
        raise Refused("neither .jpg nor .json")
    if pairs.has(stem, suffix):
        raise Refused("twice in this tar")
    place = pairs.destination.place(stem, suffix)
    staged = None
    if not is_in_place(place, member.size, (lambda: _read(place) == member.read()) if compare else None):
        data = member.read()
        if data is None:
            raise Refused("cut short")
        check_content(suffix, data)
        staged = _stage(place, data)
    pairs.add(Half(stem, suffix, place, staged))


def _read(place: str) -> bytes:
    with open_regular(place) as file:
        return file.read()


def _take_file(path: str, stem: str, suffix: str, mode: Mode, pairs: PairWriter) -> None:
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise Refused("a link, or not a plain file")
    place = pairs.destination.place(stem, suffix)
    moves = mode == "move"
    there = is_in_place(place, status.st_size, (lambda: filecmp.cmp(path, place, shallow=False)) if moves else None)
    if not there:
        check_file(path)
    elif moves and not _is_only_name(status, place):
        try:
            os.unlink(path)
        except OSError as error:
            raise Refused(f"a copy is in place, but it cannot be removed ({error.strerror})") from error
    pairs.add(Half(stem, suffix, place, None if there else path))


def _is_only_name(status: os.stat_result, place: str) -> bool:
    """Whether a file is the one in its place, seen through another mount: removing it there would remove it here."""
    return status.st_nlink == 1 and os.path.samestat(status, os.stat(place))


def _stage(place: str, data: bytes) -> str:
    staged = staged_path(place)
    with _writing(place), open(staged, "wb", buffering=0) as file:
        written = file.write(data)
        if written != len(data):  # the disk filled up
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return staged


@contextmanager
def _writing(place: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"Cannot write {place}: {error.strerror}; fix that and run the same command again to continue."
        ) from error


def _rename(waiting: str, place: str) -> None:
    with _writing(place):
        os.replace(waiting, place)


def _copy(waiting: str, place: str) -> None:
    staged = staged_path(place)
    with _writing(place):
        shutil.copyfile(waiting, staged)
        os.replace(staged, place)


def _move(waiting: str, place: str) -> None:
    try:
        os.replace(waiting, place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise UserError(f"Cannot move {waiting} to {place}: {error.strerror}; use --copy.") from error
        _copy(waiting, place)
        with _writing(place):
            _fsync(place)
            fsync_directory(Path(place).parent)
        try:
            os.unlink(waiting)
        except OSError as error:
            raise UserError(
                f"Cannot remove {waiting}, which is copied to {place}: {error.strerror}; use --copy."
            ) from error


def _link(waiting: str, place: str) -> None:
    staged = staged_path(place)
    try:
        os.link(waiting, staged)
        os.replace(staged, place)
    except OSError as error:
        raise UserError(
            f"Cannot hard-link {waiting} to {place}: {error.strerror}; use --copy or --move where source and output "
            "are on different file systems."
        ) from error
