"""Prompts, images and places that `predict` cannot do with, and what it must not lose."""

import errno
import io
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.fault import Fault, Outcome, Place, Run, refused, works
from faults.rows.image_files import write_image

_PREDICT = "predict {merged} {root}/in/a.jpg --out {root}/out"
_ONNX = "predict {onnx} {root}/in/a.jpg --out {root}/out"
_FOLDER = "predict {merged} {root}/in --point 20 20 --out {root}/out"
_P = "--point 20 20"
_NOT_UTF8 = os.fsdecode(b"\xff dog")


def _image(place: Place) -> None:
    write_image(place.root / "in/a.jpg")


def _answered(place: Place, outcome: Outcome) -> None:
    works("object")(place, outcome)
    json.loads((place.root / "out/a.json").read_text())


def _line(command: str, *words: object) -> Callable[[Place], list[str]]:
    return lambda place: [*place.fill(command), *map(str, words)]


def _run(command: str, *words: object, expect: Any) -> Callable[[Place, Run], None]:
    """A command with words that no shell's line may hold."""

    def attempt(place: Place, run: Run) -> None:
        _image(place)
        outcome = run(_line(command, *words)(place))
        expect(place, outcome)
        assert (place.root / "out").exists() or not isinstance(expect, works)

    return attempt


def _one_name(place: Place) -> None:
    for number, name in enumerate(("a.jpg", "a.png", "a.jpg.png")):
        write_image(place.root / "in" / name, (60 + number, 48))


def _records(folder: Path) -> dict[str, Any]:
    return {str(path.relative_to(folder)): json.loads(path.read_text()) for path in folder.rglob("*.json")}


def _three_answers(place: Place, outcome: Outcome) -> None:
    works("1 object")(place, outcome)
    records = _records(place.root / "out")
    assert sorted(Path(record["image"]).name for record in records.values()) == ["a.jpg", "a.jpg.png", "a.png"]
    masks = {record["objects"][0]["mask"]: record["width"] for record in records.values()}
    assert sorted(masks.values()) == [60, 61, 62]


def _changed_weights(place: Place) -> None:
    _image(place)
    with place.merged.open("r+b") as file:
        file.seek(place.merged.stat().st_size // 2)
        data = bytearray(file.read(4000))
        file.seek(-len(data), os.SEEK_CUR)
        file.write(bytes(byte ^ 0x55 for byte in data))


class _Overwriting:
    """Overwrites the model in place as `cp` does, once it is loaded."""

    def __init__(self, content: str) -> None:
        self._content = content

    def __call__(self) -> None:
        from PIL import Image

        original, content = Image.open, self._content

        def overwrite(*args: Any, **options: Any) -> Any:
            size = os.path.getsize("merged.pt")
            with open("merged.pt", "wb") as file:
                if content == "zeros":
                    file.write(bytes(size))
            Image.open = original
            return original(*args, **options)

        Image.open = overwrite


def _text_beside(place: Place) -> None:
    _image(place)
    (place.root / "in/b.jpg").write_text("not an image")


def _model_beside(place: Place) -> None:
    _image(place)
    shutil.copyfile(place.merged, place.root / "in/b.jpg")


def _folder_beside(place: Place) -> None:
    _image(place)
    (place.root / "in/x.jpg").mkdir()


def _skipped(place: Place, outcome: Outcome) -> None:
    works("1 object", "skipped")(place, outcome)


def _out_is_a_file(place: Place) -> None:
    _image(place)
    (place.root / "out").write_text("mine")


def _long_name(place: Place) -> None:
    write_image(place.root / "in/a.jpg")
    write_image(place.root / "in" / ("b" * 250 + ".jpg"))


def _full_disk() -> None:
    """Fails when more than 100 kB are written to images and records."""
    opened, written = io.open, [0]

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            written[0] += len(data)
            if written[0] > 3_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    def full(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if isinstance(file, str | os.PathLike) and ".tmp" in os.fspath(file) and "b" in mode:
            return io.BufferedRandom(Full(file, "w+"), 1)
        return opened(file, mode, *args, **options)

    import builtins

    builtins.open = full  # type: ignore[assignment]
    io.open = full  # type: ignore[assignment]


def _nothing_half_written(place: Place, outcome: Outcome) -> None:
    refused("no space left")(place, outcome)
    names = sorted(path.name for path in (place.root / "out").iterdir())
    assert not [name for name in names if name.endswith((".tmp", ".json"))], names


def _two_at_once(place: Place, run: Run) -> None:
    for number in range(4):
        write_image(place.root / f"in/{number}.jpg", seed=number)
    command = f"efficientsam3 predict {place.merged} {place.root}/in {_P} --out {place.root}/out"
    both = f"{command} & first=$!; {command}; second=$?; wait $first && exit $second"
    works("object")(place, run(["bash", "-c", both], program=True, timeout=120))
    assert len(_records(place.root / "out")) == 4


# --- of our own


def _again(place: Place, run: Run) -> None:
    """The same command over its own answers, beside the images: the same answers, and none about them."""
    _image(place)
    command = "predict {merged} {root}/in --point 20 20 --out {root}/in"
    works("1 object")(place, run(command))
    names = sorted(os.listdir(place.root / "in"))
    outcome = run(command)
    works("1 object")(place, outcome)
    assert sorted(os.listdir(place.root / "in")) == names, outcome


def _corrected_by_hand(place: Place, run: Run) -> None:
    _image(place)
    works("1 object")(place, run(_PREDICT + " --point 20 20"))
    (place.root / "out/a_mask_000.png").write_bytes(b"corrected by hand")
    outcome = run(_PREDICT + " --point 30 30")
    assert (place.root / "out/a_mask_000.png").read_bytes() == b"corrected by hand"
    refused("a_mask_000.png", "changed since", "--overwrite")(place, outcome)


def _one_video_after_the_other(place: Place, run: Run) -> None:
    for number in (1, 2):
        write_image(place.root / f"v{number}/f.jpg", seed=number)
    works("1 object")(place, run("predict {merged} {root}/v1 --point 20 20 --out {root}/out"))
    outcome = run("predict {merged} {root}/v2 --point 20 20 --out {root}/out")
    assert Path(_records(place.root / "out")["f.json"]["image"]).parent.name == "v1"
    refused("f.json", "v1/f.jpg", "--overwrite")(place, outcome)


def _foreign_stale_mask(place: Place, run: Run) -> None:
    """A mask of the user's that no answer needs is refused, not removed as one of an earlier run."""
    _image(place)
    works("1 object")(place, run(_PREDICT + " --point 20 20"))
    (place.root / "out/a_mask_001.png").write_bytes(b"mine")
    outcome = run(_PREDICT + " --point 20 20")
    assert (place.root / "out/a_mask_001.png").read_bytes() == b"mine"
    refused("a_mask_001.png")(place, outcome)


def _link_in_the_way(place: Place) -> None:
    _image(place)
    (place.root / "out").mkdir()
    (place.root / "mine.json").write_text("mine")
    (place.root / "out/a.json").symlink_to("../mine.json")


def _killed_then_run_again(place: Place, run: Run) -> None:
    """What a killed run leaves is its own: the next run is not refused, and finds no file of another state."""
    for number in range(3):
        write_image(place.root / f"in/{number}.jpg", seed=number)
    run(_FOLDER, signals=[(0.6, signal.SIGKILL)])
    works("1 object")(place, run(_FOLDER))
    records = _records(place.root / "out")
    assert len(records) == 3
    for record in records.values():
        assert all((place.root / "out" / found["mask"]).is_file() for found in record["objects"])


def _input_is_an_answer(place: Place) -> None:
    """An image of the user's has the name that another's overlay would have."""
    for name in ("a.png", "a_overlay.png"):
        write_image(place.root / "in" / name)


def _torn_list(place: Place, run: Run) -> None:
    """The list of own files is cut: nothing that it lacks is replaced."""
    _image(place)
    works("1 object")(place, run(_PREDICT + " --point 20 20"))
    path = place.root / "out/.efficientsam3-files"
    if path.exists():
        path.write_bytes(path.read_bytes()[:-30])
    else:
        (place.root / "out/a.json").write_text("mine")
    before = (place.root / "out/a.json").read_bytes()
    outcome = run(_PREDICT + " --point 30 30")
    assert (place.root / "out/a.json").read_bytes() == before
    refused("a.json", "--overwrite")(place, outcome)


def _deep_tree(place: Place, run: Run) -> None:
    """Three folders, two depths, one of them beside the images: as many answers as images."""
    for name in ("x.jpg", "day/x.jpg", "day/night/x.jpg", "day/night/x.png"):
        write_image(place.root / "in" / name)
    command = "predict {merged} '{root}/in/**/*.[jp][pn]g' --point 20 20 --out {root}/out"
    works("1 object")(place, run(command))
    images = [record["image"] for record in _records(place.root / "out").values()]
    assert len(set(images)) == 4
    works("1 object")(place, run(command))
    assert len(_records(place.root / "out")) == 4


def _unreadable_folder(place: Place) -> None:
    _image(place)
    (place.root / "in").chmod(0)


_SLOW = {"spoil": _image, "slow": True}

ROWS = [
    Fault("Q-surr", "a text that is not UTF-8", _run(_PREDICT, "--text", _NOT_UTF8, expect=refused("text", "UTF-8"))),
    Fault(
        "Q-surro",
        "a text that is not UTF-8, with ONNX",
        _run(_ONNX, "--text", _NOT_UTF8, expect=refused("text", "UTF-8")),
    ),
    Fault("Q-col", "a.jpg, a.png and a.jpg.png in one folder", _FOLDER, _three_answers, _one_name),
    Fault(
        "Q-flip",
        "4000 bytes of the model changed",
        f"{_PREDICT} {_P}",
        refused("merged.pt", "sha-256"),
        _changed_weights,
    ),
    Fault(
        "F10",
        "the model is cut in place once it is loaded",
        f"{_PREDICT} {_P}",
        _answered,
        _image,
        options={"inject": _Overwriting("nothing")},
    ),
    Fault("predict-h1", "a point outside the image", f"{_PREDICT} --point 1000 1000", refused("1000"), **_SLOW),
    Fault("predict-h2", "negative coordinates", f"{_PREDICT} --point -5 -5", refused("-5"), **_SLOW),
    Fault("predict-h3", "a point of NaN", f"{_PREDICT} --point nan nan", refused("nan"), **_SLOW),
    Fault("predict-h4", "a box with an infinity", f"{_PREDICT} --box 0 0 inf 9", refused("inf"), **_SLOW),
    Fault("predict-h5", "an empty box", f"{_PREDICT} --box 5 5 5 5", refused("box"), **_SLOW),
    Fault("predict-h6", "an inverted box", f"{_PREDICT} --box 30 30 10 10", refused("box"), **_SLOW),
    Fault("predict-h7", "a box of 1e-30 pixels", f"{_PREDICT} --object-box 0 0 1e-30 1e-30", _answered, **_SLOW),
    Fault("predict-h8", "a point on the far edge", f"{_PREDICT} --point 64 48", _answered, **_SLOW),
    Fault("predict-h9", "3000 points", _run(_PREDICT, *["--point", 5, 5] * 3000, expect=_answered), slow=True),
    Fault("predict-h10", "1500 boxes", _run(_PREDICT, *["--box", 1, 1, 9, 9] * 1500, expect=_answered), slow=True),
    Fault(
        "predict-h11",
        "200 texts",
        _run(_PREDICT, *(word for number in range(200) for word in ("--text", f"dog {number}")), expect=_answered),
        slow=True,
    ),
    Fault("predict-h12", "an empty text", f"{_PREDICT} --text ''", refused("text"), **_SLOW),
    Fault("predict-h13", "a blank text", f"{_PREDICT} --text '   '", refused("text", "empty"), **_SLOW),
    Fault(
        "predict-h14",
        "a word of 10000 letters",
        _run(_PREDICT, "--text", "a" * 10000, expect=refused("text")),
        slow=True,
    ),
    Fault(
        "predict-h15",
        "a text of 100000 words",
        _run(_PREDICT, "--text", "a " * 50000, expect=refused("tokens", "shorten")),
        slow=True,
    ),
    Fault(
        "predict-h16",
        "a text with control characters and markup",
        _run(_PREDICT, "--text", "\x1b[31m<b>\t", "--threshold", 0, expect=_answered),
        slow=True,
    ),
    Fault(
        "predict-h17",
        "a text of letters that no font here has",
        f"{_PREDICT} --text 狗 --threshold 0",
        _answered,
        **_SLOW,
    ),
    Fault("predict-h18", "the same with ONNX", f"{_ONNX} --text 狗 --threshold 0", _answered, **_SLOW),
    Fault("predict-h19", "a threshold of NaN", f"{_PREDICT} {_P} --threshold nan", refused("--threshold"), **_SLOW),
    Fault("predict-h20", "a threshold of 2", f"{_PREDICT} {_P} --threshold 2", refused("--threshold 2"), **_SLOW),
    Fault("predict-h21", "no prompt", _PREDICT, refused("no prompt"), **_SLOW),
    Fault("predict-h22", "a negative point alone", f"{_PREDICT} --negative-point 5 5", refused("negative"), **_SLOW),
    Fault("predict-h23", "--out is a file", f"{_PREDICT} {_P}", refused("out"), _out_is_a_file),
    Fault(
        "predict-h24",
        "--out below /proc",
        f"predict {{merged}} {{root}}/in/a.jpg {_P} --out /proc/x",
        refused("/proc"),
        **_SLOW,
    ),
    Fault(
        "predict-h25",
        "a pattern that matches nothing",
        f"predict {{merged}} '{{root}}/in/*.png' {_P} --out {{root}}/out",
        refused("no image matches"),
        **_SLOW,
    ),
    Fault(
        "predict-h26",
        "a pattern over all of the disk",
        f"predict {{merged}} '/**/no such *.jpg' {_P} --out {{root}}/out",
        refused("no image matches"),
        slow=True,
        options={"timeout": 240},
    ),
    Fault("predict-h27", "a folder called x.jpg beside an image", _FOLDER, _skipped, _folder_beside, slow=True),
    Fault("predict-h28", "a text as an image", _FOLDER, _skipped, _text_beside, slow=True),
    Fault("predict-h29", "the model as an image", _FOLDER, _skipped, _model_beside, slow=True),
    Fault(
        "predict-h30",
        "a folder of images as the model",
        f"predict {{root}}/in {{root}}/in/a.jpg {_P} --out {{root}}/out",
        refused("in"),
        **_SLOW,
    ),
    Fault("predict-h31", "a variant that was not exported", f"{_ONNX} {_P} --variant fp16", refused("fp16"), **_SLOW),
    Fault("predict-h32", "an image's name of 254 characters", _FOLDER, refused("name"), _long_name),
    Fault(
        "predict-h33",
        "the disk is full",
        f"{_PREDICT} {_P}",
        _nothing_half_written,
        _image,
        options={"inject": _full_disk},
    ),
    Fault("predict-h34", "two runs into one folder at once", _two_at_once, slow=True),
    Fault(
        "predict-h35",
        "the model is overwritten by zeros once it is loaded",
        f"{_PREDICT} {_P}",
        _answered,
        _image,
        options={"inject": _Overwriting("zeros")},
    ),
    Fault("new-predict-1", "the same command twice, beside the images", _again),
    Fault("new-predict-2", "an answer that was corrected by hand", _corrected_by_hand),
    Fault("new-predict-3", "one folder after the other, with images of one name, into one", _one_video_after_the_other),
    Fault("new-predict-4", "a mask of the user's among those of an earlier run", _foreign_stale_mask),
    Fault(
        "new-predict-5",
        "a link of the user's where an answer goes",
        f"{_PREDICT} {_P}",
        refused("a.json"),
        _link_in_the_way,
    ),
    Fault("new-predict-6", "killed, then run again", _killed_then_run_again),
    Fault(
        "new-predict-7",
        "an image has the name of another's overlay",
        f"predict {{merged}} {{root}}/in {_P} --out {{root}}/in",
        refused("a_overlay.png"),
        _input_is_an_answer,
    ),
    Fault("new-predict-8", "the list of own files is cut", _torn_list),
    Fault("new-predict-9", "a tree of images with one name, twice", _deep_tree),
    Fault(
        "new-predict-10",
        "a folder of images that cannot be read",
        _FOLDER,
        refused("in", "cannot be read"),
        _unreadable_folder,
        options={"unprivileged": True},
    ),
]
