"""Outputs that would replace what is the user's."""

import json
import os
import stat
from pathlib import Path

from faults.fault import Fault, Outcome, Place, Run, refused, works
from faults.rows.image_files import write_image

_MERGE = "merge --student-ckpt {student} --sam3-ckpt {sam3}"
_POINT = "--point 20 20"


def _tensorflow_js(place: Place) -> None:
    folder = place.root / "web"
    folder.mkdir()
    (folder / "model.json").write_text('{"format": "layers-model"}')
    (folder / "group1-shard1of1.bin").write_bytes(b"weights")
    (folder / "index.html").write_text("my page")


def _bert(place: Place) -> None:
    folder = place.root / "bert"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "notes.txt").write_text("mine")


def _two_videos(place: Place) -> None:
    for number in (1, 2):
        write_image(place.root / f"in/video{number}/frame_0001.jpg", seed=number)


def _both_have_answers(place: Place, outcome: Outcome) -> None:
    works("1 object")(place, outcome)
    records = [json.loads(path.read_text()) for path in (place.root / "out").rglob("*.json")]
    assert sorted(Path(record["image"]).parent.name for record in records) == ["video1", "video2"], outcome
    for path in (place.root / "out").rglob("*.json"):
        assert (path.parent / json.loads(path.read_text())["objects"][0]["mask"]).is_file()


_DRAWN = ("cat_mask_000.png", "cat_mask_001.png", "cat_mask_002.png", "cat.json", "cat_overlay.png")


def _drawn_by_hand(place: Place) -> None:
    write_image(place.root / "pets/cat.jpg")
    for name in _DRAWN:
        (place.root / "pets" / name).write_bytes(b"drawn by hand")


def _device(place: Place) -> None:
    os.mknod(place.root / "null.pt", stat.S_IFCHR | 0o666, os.makedev(1, 3))


def _into_a_device(place: Place, run: Run) -> None:
    """Where nodes cannot be made, a link to one stands for it."""
    try:
        _device(place)
    except PermissionError:
        (place.root / "null.pt").symlink_to(os.devnull)
    before = os.lstat(place.root / "null.pt")
    outcome = run(_MERGE + " --output {root}/null.pt")
    after = os.lstat(place.root / "null.pt")
    assert (after.st_mode, after.st_rdev, after.st_ino) == (before.st_mode, before.st_rdev, before.st_ino), outcome
    refused("null.pt")(place, outcome)


def _export_here(place: Place, run: Run) -> None:
    _tensorflow_js(place)
    folder = place.root / "web"
    outcome = run(f"export-onnx {place.merged} --out {folder}", cwd=folder)
    assert sorted(path.name for path in folder.iterdir()) == ["group1-shard1of1.bin", "index.html", "model.json"]
    refused("would replace", "--overwrite")(place, outcome)


_FOREIGN = refused("would replace", "which efficientsam3 did not write", "--overwrite")

ROWS = [
    Fault("L1", "merge into the folder of the training", _MERGE + " --format hf --output {training}", _FOREIGN),
    Fault("L2", "merge into the folder of the export", _MERGE + " --format hf --output {teacher}", _FOREIGN),
    Fault(
        "L3", "export-onnx into a web page's folder", "export-onnx {merged} --out {root}/web", _FOREIGN, _tensorflow_js
    ),
    Fault("L4", "merge into another model's folder", _MERGE + " --format hf --output {root}/bert", _FOREIGN, _bert),
    Fault(
        "L5",
        "predict on two frames of one name",
        f"predict {{merged}} {{root}}/in/video1/frame_0001.jpg {{root}}/in/video2/frame_0001.jpg {_POINT} "
        "--out {root}/out",
        _both_have_answers,
        _two_videos,
    ),
    Fault(
        "L5b",
        "predict on a pattern over two folders with frames of one name",
        f"predict {{merged}} '{{root}}/in/**/*.jpg' {_POINT} --out {{root}}/out",
        _both_have_answers,
        _two_videos,
    ),
    Fault(
        "L6",
        "predict into the folder of the ground truth",
        f"predict {{merged}} {{data}}/images/val {_POINT} --out {{data}}/annotations/val",
        _FOREIGN,
    ),
    Fault(
        "L7",
        "predict beside masks that were drawn by hand",
        f"predict {{merged}} {{root}}/pets/cat.jpg {_POINT} --out {{root}}/pets",
        _FOREIGN,
        _drawn_by_hand,
    ),
    Fault("F6", "merge onto a device", _into_a_device),
    Fault("F8d", "export-onnx into the current folder by its path", _export_here),
]
