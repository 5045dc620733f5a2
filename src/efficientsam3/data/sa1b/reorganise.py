"""From Meta's tars, or folders of extracted pairs, to `images/{train,val}` and `annotations/{train,val}`."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from efficientsam3.data.parallel import map_processes
from efficientsam3.data.sa1b.pairs import KINDS, STAGING, Destination
from efficientsam3.data.sa1b.placing import (
    MEGABYTE,
    FolderUnit,
    Mode,
    ReorgReport,
    Skipped,
    TarUnit,
    place_folder,
    place_tar,
)
from efficientsam3.data.sa1b.tars import SAFE_NAME
from efficientsam3.data.split import DEFAULT_VAL_RATIO
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import write_json, write_text
from efficientsam3.runtime.json_files import read_json_object
from efficientsam3.runtime.locks import locked
from efficientsam3.runtime.progress import progress_bar

STATE_FILE = "reorg.json"
SKIPPED_FILE = "reorg_skipped.tsv"
_STEMS_PER_UNIT = 500


@dataclass
class _Sources:
    tars: list[Path] = field(default_factory=list)
    folders: list[tuple[Path, list[str]]] = field(default_factory=list)  # each with the stems of its files
    skipped: list[Skipped] = field(default_factory=list)


def reorganise(
    source: Path,
    output: Path,
    val_ratio: float = DEFAULT_VAL_RATIO,
    workers: int = 1,
    mode: Mode = "copy",
    delete_tars: bool = False,
) -> ReorgReport:
    """Put every pair of `ID.jpg` and `ID.json` below `source` into a dataset.

    Tars are read once, straight into place. Files already in place stay, so the same call continues an interrupted run.
    Halves without a partner, broken files and unsafe members stay where they are, and are listed in
    `output/reorg_skipped.tsv` (columns source, name, reason).

    Args:
        source: a tar, or a folder with tars and with folders of pairs, at any depth; may be `output` itself.
        output: the dataset.
        val_ratio: share of images that go to val, by a hash of their id; the same in every call for one `output`.
        workers: processes.
        mode: what to do with the files of folders; hard links need one file system.
        delete_tars: remove each tar once all of it is in place and on disk, unless anything was skipped.

    Raises:
        UserError: `source` has nothing to reorganise, `output` has another origin or is in use, or the disk is full.
    """
    _check_arguments(source, val_ratio, workers)
    sources = _find_sources(source, output)
    if not (sources.tars or sources.folders or (output / STATE_FILE).exists()):
        unread = [f", and {part.source} {part.reason}" for part in sources.skipped if not part.name]
        raise UserError(
            f"--source {source} has no .tar, .jpg or .json in it{''.join(unread[:1])}: name the folder that has them."
        )
    destination = Destination(output, val_ratio)
    with locked(output / ".reorg.lock", f"--output {output}"):
        claimed = _check_claim(destination)
        destination.prepare()
        if not claimed:
            write_json(output / STATE_FILE, {"split": "sha256", "val_ratio": val_ratio})
        try:
            report = ReorgReport(skipped=sources.skipped)
            _place_folders(destination, sources, mode, workers, report)
            _place_tars(destination, sources, delete_tars, workers, report)
        finally:
            destination.remove_staged()
        report.skipped.sort()
        _write_skipped(output / SKIPPED_FILE, report.skipped)
    return report


def _check_arguments(source: Path, val_ratio: float, workers: int) -> None:
    if not (os.path.isdir(source) or os.path.isfile(source)):
        state = "is neither a folder nor a file" if os.path.lexists(source) else "does not exist"
        raise UserError(f"--source {source} {state}: name the folder with Meta's tars, or with their extracted files.")
    if not 0 <= val_ratio <= 1:
        raise UserError(f"--val-ratio {val_ratio} is out of range: give a number from 0 to 1.")
    if workers < 1:
        raise UserError(f"--workers {workers} is too few: give 1 or more.")


def _find_sources(source: Path, output: Path) -> _Sources:
    found = _Sources()
    if source.is_file():
        found.tars.append(source)
        return found
    own = {(output / kind).resolve() for kind in KINDS.values()}

    def note(error: OSError) -> None:
        found.skipped.append(Skipped(str(error.filename), "", f"cannot be read ({error.strerror})"))

    for folder, below, names in os.walk(source, onerror=note):
        here = Path(folder)
        below.sort()
        found.skipped += [Skipped(folder, name, "a link to a folder") for name in below if (here / name).is_symlink()]
        below[:] = [name for name in below if not name.startswith(".") and (here / name).resolve() not in own]
        found.tars += [here / name for name in sorted(names) if name.endswith(".tar")]
        stems = _stems(here, names, found.skipped)
        if stems:
            found.folders.append((here, stems))
    return found


def _stems(folder: Path, names: list[str], skipped: list[Skipped]) -> list[str]:
    candidates = [name for name in names if os.path.splitext(name)[1] in KINDS and not name.startswith(".")]
    if STATE_FILE in candidates:
        candidates.remove(STATE_FILE)
    unsafe = [name for name in candidates if not SAFE_NAME.fullmatch(name)]
    skipped += [Skipped(str(folder), name, "its name has unexpected characters") for name in unsafe]
    return sorted({os.path.splitext(name)[0] for name in candidates}.difference(os.path.splitext(n)[0] for n in unsafe))


def _place_folders(destination: Destination, sources: _Sources, mode: Mode, workers: int, report: ReorgReport) -> None:
    units = [
        FolderUnit(destination, folder, tuple(stems[start : start + _STEMS_PER_UNIT]), mode)
        for folder, stems in sources.folders
        for start in range(0, len(stems), _STEMS_PER_UNIT)
    ]
    with progress_bar("Folders, pairs", sum(len(unit.stems) for unit in units), visible=bool(units)) as advance:
        for part in map_processes(place_folder, units, min(workers, max(len(units), 1)), advance):
            report.add(part)


def _place_tars(destination: Destination, sources: _Sources, delete: bool, workers: int, report: ReorgReport) -> None:
    units = [TarUnit(destination, tar, delete) for tar in sources.tars]
    megabytes = sum(_size(tar) // MEGABYTE for tar in sources.tars)
    with progress_bar("Tars, MB", megabytes, visible=bool(units)) as advance:
        for part in map_processes(place_tar, units, min(workers, max(len(units), 1)), advance):
            report.add(part)


def _size(tar: Path) -> int:
    try:
        return tar.stat().st_size
    except OSError:  # which reading it will report
        return 0


def _check_claim(destination: Destination) -> bool:
    """Whether a run has recorded its ratio; refuse another ratio, and datasets that were split in another way."""
    state = destination.output / STATE_FILE
    if os.path.lexists(state):
        before = _read_ratio(state)
        if before != destination.val_ratio:
            raise UserError(
                f"--val-ratio {destination.val_ratio} is not the {before} that {destination.output} was made with: "
                f"give {before}, or another --output."
            )
        return True
    for folder in destination.folders():
        try:
            found = next((entry.path for entry in os.scandir(folder) if entry.name != STAGING), None)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"{folder} cannot be read ({error.strerror}): choose another --output.") from error
        if found is not None:
            raise UserError(
                f"{folder} has files that were not put there by this command, which could mix up their splits: "
                "choose another --output, or use the dataset as it is."
            )
    return False


def _read_ratio(state: Path) -> float:
    remedy = 'write {"val_ratio": R} there with the ratio R used before'
    ratio = read_json_object(state, remedy).get("val_ratio")
    if not isinstance(ratio, int | float) or not 0 <= ratio <= 1:
        raise UserError(f"{state} is damaged, its val_ratio is {ratio!r:.60}: {remedy}.")
    return ratio


def _write_skipped(path: Path, skipped: list[Skipped]) -> None:
    """Write the list; names come from untrusted tars, so control and non-ASCII characters are escaped."""
    lines = ["\t".join(str(part).encode("unicode_escape").decode() for part in row) + "\n" for row in skipped]
    write_text(path, "source\tname\treason\n" + "".join(lines))
