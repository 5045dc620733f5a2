"""Merging: further faults of its inputs and outputs."""

import signal
import zipfile
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import save_file

from faults.fault import Expect, Fault, Outcome, Place, Run, refused, snapshot
from faults.rows.weights import MERGE, edit, overwrite, sam3_with

_DECODER = "detector.transformer.decoder."


def _student_with(change: Callable[[dict[str, Any]], None]) -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        edit(place.student, change)

    return spoil


def _nan_average(content: dict[str, Any]) -> None:
    """The weights themselves are whole, but the averaged ones, which are merged, are not."""
    content["ema"] = {key: value.clone() for key, value in content["model"].items()}
    content["ema"]["head.3.bias"][0] = float("nan")


def _no_deviation(content: dict[str, Any]) -> None:
    content["normalisation"] = {"mean": torch.zeros(64), "std": torch.zeros(64)}


def _moments_of_another(content: dict[str, Any]) -> None:
    content["normalisation"] = {"mean": torch.zeros(8), "std": torch.ones(8)}


def _other_pixels(content: dict[str, Any]) -> None:
    content["preprocessing"]["image_size"] = 112


def _stranger(place: Place) -> None:
    edit(place.sam3, lambda tensors: tensors | {"detector.transformer.stranger.weight": torch.ones(3)})


def _file_as_folder(place: Place) -> None:
    (place.root / "mine").write_text("mine")


def _cut_safetensors(place: Place) -> None:
    content = torch.load(place.student, weights_only=True)["model"]
    path = place.root / "student.safetensors"
    save_file({key: value.contiguous() for key, value in content.items()}, path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _changed_merged(place: Place) -> None:
    overwrite(place.merged, b"\x3c" * 4000)


def _overlapping(place: Place) -> None:
    """Ten records more that all lie where the largest one does: a bomb without compression."""
    path = place.student
    with zipfile.ZipFile(path, "a") as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
        for number in range(200):
            twin = zipfile.ZipInfo(f"{largest.filename}{number}")
            for name in ("header_offset", "file_size", "compress_size", "CRC", "compress_type"):
                setattr(twin, name, getattr(largest, name))
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
        archive._didModify = True  # type: ignore[attr-defined]


def _locked(place: Place) -> None:
    folder = place.root / "locked"
    folder.mkdir()
    folder.chmod(0o555)


def _ended(place: Place, run: Run) -> None:
    """SIGTERM while it works: no half of a model and no temporary file stays, and what was there does."""
    for after in (0.3, 0.6, 0.9):
        (place.root / "out.pt").unlink(missing_ok=True)
        before = {path.name for path in place.root.iterdir()} | {"student.pth", "sam3.pt"}
        outcome = run(MERGE, signals=[(after, signal.SIGTERM)])
        assert not outcome.hung, outcome
        if outcome.code != 0:
            assert {path.name for path in place.root.iterdir()} <= before, outcome
        else:
            for path in place.root.glob("out.pt*"):
                path.unlink()


def _dry(place: Place, run: Run) -> None:
    _ = place.student, place.sam3
    (place.root / "out.pt").write_text("mine")
    before = snapshot(place.root)
    run(MERGE + " --dry-run")
    assert snapshot(place.root) == before


def _row(case: str, what: str, spoil: Callable[[Place], object] | None, expect: Expect, command: str = MERGE) -> Fault:
    return Fault(case, f"{what}: merge", command, expect, spoil, slow=True)


def _in(path: str) -> str:
    return MERGE.replace("{root}/out.pt", path)


def _says_where(place: Place, outcome: Outcome) -> None:
    refused("mine")(place, outcome)
    assert (place.root / "mine").read_text() == "mine"


ROWS = [
    _row("new-merge-1", "NaN in the averaged weights alone", _student_with(_nan_average), refused("head.3.bias")),
    _row("new-merge-2", "deviations of 0 in normalisation", _student_with(_no_deviation), refused("normalisation")),
    _row("new-merge-3", "normalisation of 8 channels", _student_with(_moments_of_another), refused("normalisation")),
    _row("new-merge-4", "a student of images of another size", _student_with(_other_pixels), refused("112", "224")),
    _row("new-merge-5", "SAM3 with a tensor that it does not have", _stranger, refused("stranger")),
    _row(
        "new-merge-6",
        "SAM3 in float8",
        sam3_with(_DECODER, lambda value: value.to(torch.float8_e4m3fn), "linear1.weight"),
        refused("linear1.weight", "float8"),
    ),
    _row("new-merge-7", "--output below a file", _file_as_folder, _says_where, _in("{root}/mine/out.pt")),
    _row(
        "new-merge-8",
        "a safetensors student cut short",
        _cut_safetensors,
        refused("student.safetensors"),
        "merge --student-ckpt {root}/student.safetensors --sam3-ckpt {sam3} --output {root}/out.pt",
    ),
    _row(
        "new-merge-9",
        "4000 bytes of the merged model that the student is taken from changed",
        _changed_merged,
        refused("merged.pt"),
        "merge --student-ckpt {merged} --sam3-ckpt {sam3} --output {root}/out.pt",
    ),
    _row("new-merge-10", "records that overlap", _overlapping, refused("student.pth")),
    Fault(
        "new-merge-11",
        "--output in a folder that may not be written to: merge",
        _in("{root}/locked/out.pt"),
        refused("locked", "permission"),
        _locked,
        slow=True,
        options={"unprivileged": True},
    ),
    Fault("new-merge-12", "merge ended by SIGTERM at three moments", _ended),
    Fault("new-merge-13", "merge --dry-run over a file of the user's", _dry, slow=True),
    _row(
        "new-merge-14",
        "the student and SAM3 swapped",
        None,
        refused("sam3"),
        "merge --student-ckpt {sam3} --sam3-ckpt {student} --output {root}/out.pt",
    ),
    _row(
        "new-merge-15",
        "weights too large for float16",
        sam3_with(_DECODER, lambda value: torch.full_like(value, 1e6), "linear1.weight"),
        refused("linear1.weight", "float16"),
        MERGE + " --dtype float16",
    ),
]
