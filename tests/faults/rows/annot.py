"""Annotations of images, SA-1B's and COCO's, as `data check` and `evaluate` read them."""

import errno
import functools
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from faults.fault import Expect, Fault, Outcome, Place, refused, works

_BRACKETS = b"[" * 100000
_SIDE = 46340
_CHECK = "data check {data} --workers 1"
_EVALUATE = "evaluate {merged} --data {data} --out {root}/report --max-objects 2 --prompt box point"
_CHECK_COCO = "data check {root}/coco --dataset coco --workers 1"
_EVALUATE_COCO = "evaluate {merged} --data {root}/coco --out {root}/report --max-objects 2"

Edit = Callable[[dict[str, Any]], object]


def _victim(place: Place) -> Path:
    return place.data / "annotations/val/sa_13.json"


def _write(content: bytes, place: Place) -> None:
    _victim(place).write_bytes(content)


def _edited(edit: Edit, place: Place) -> None:
    content = json.loads(_victim(place).read_text())
    edit(content)
    _victim(place).write_text(json.dumps(content))


def _first(**values: Any) -> Edit:
    """Changes every mask: `--max-objects` chooses any."""

    def edit(content: dict[str, Any]) -> None:
        for mask in content["annotations"]:
            mask.update(values)

    return edit


def _giant_mask(content: dict[str, Any], of_image: bool) -> None:
    if of_image:
        content["image"].update(width=_SIDE, height=_SIDE)
    # One run of zeros: 46340 x 46340 in groups of 5 bits.
    number, counts = _SIDE * _SIDE, ""
    while number >= 16:
        counts += chr(48 + (number & 31) + 32)
        number >>= 5
    counts += chr(48 + number)
    for mask in content["annotations"]:
        mask["segmentation"] = {"size": [_SIDE, _SIDE], "counts": counts}


def _many_objects(content: dict[str, Any]) -> None:
    mask = min(content["annotations"], key=lambda each: len(json.dumps(each)))
    content["annotations"] = [mask] * 100000


def _raw(key: str, number: bytes, place: Place) -> None:
    """A number that Python would not print."""
    content = json.loads(_victim(place).read_text())
    content["image"][key] = "NUMBER"
    _victim(place).write_bytes(json.dumps(content).encode().replace(b'"NUMBER"', number))


def _long_counts(place: Place) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["annotations"][0]["segmentation"]["counts"] = "0" * 40_000_000

    _edited(edit, place)


def _fifo(place: Place) -> None:
    _victim(place).unlink()
    os.mkfifo(_victim(place))


def _unreadable(place: Place) -> None:
    _victim(place).chmod(0)


def _unreadable_folder(place: Place) -> None:
    _victim(place).parent.chmod(0)


def _read_only(place: Place) -> None:
    place.data.chmod(0o555)


def _coco(place: Place, edit: Edit | None = None) -> Path:
    """The four images of `val` as a COCO dataset, each with one object of another category; returns the file."""
    root = place.root / "coco"
    shutil.copytree(place.data / "images/val", root / "val2017")
    (root / "annotations").mkdir()
    images, annotations = [], []
    for number, path in enumerate(sorted((place.data / "annotations/val").glob("*.json"))):
        content = json.loads(path.read_text())
        images.append({**content["image"], "id": number, "file_name": f"{path.stem}.jpg"})
        mask = max(content["annotations"], key=lambda each: each["area"])
        fields = {key: mask[key] for key in ("segmentation", "area", "bbox")}
        annotations.append({**fields, "id": number, "image_id": number, "category_id": number, "iscrowd": 0})
    categories = [{"id": number, "name": name} for number, name in enumerate(("dog", "cat", "cup", "car"))]
    file = {"images": images, "annotations": annotations, "categories": categories}
    if edit is not None:
        edit(file)
    path = root / "annotations/instances_val2017.json"
    path.write_text(json.dumps(file))
    return path


def _coco_edited(edit: Edit, place: Place) -> None:
    _coco(place, edit)


def _in(table: str, **values: Any) -> Edit:
    """Changes the first entry of a table."""
    return lambda file: file[table][0].update(values)


def _missing_ids(file: dict[str, Any]) -> None:
    file["annotations"][0]["image_id"] = file["annotations"][1]["category_id"] = 99


def _many_points(file: dict[str, Any]) -> None:
    file["annotations"][0]["segmentation"] = [[10.0, 10.0, 90.0, 10.0, 90.0, 90.0, 10.0, 90.0] * 100000]


def _giant_ids(file: dict[str, Any]) -> None:
    file["images"][0]["id"] = file["annotations"][0]["image_id"] = 10**30


def _same_stem(file: dict[str, Any]) -> None:
    file["images"][0]["file_name"], file["images"][1]["file_name"] = "a.jpg", "a.png"


def _coco_brackets(place: Place) -> None:
    _coco(place).write_bytes(_BRACKETS)


def _coco_fifo(place: Place) -> None:
    _coco(place)
    image = place.root / "coco/val2017/sa_13.jpg"
    image.unlink()
    os.mkfifo(image)


def _read_fails() -> None:
    real = os.open

    def fail(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith("sa_13.json"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *arguments, **options)

    os.open = fail


def _read(place: Place) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((place.root / "report/results.json").read_text())
    return results


def _goes_on(*words: str, images: Sequence[str] = ("sa_14", "sa_15", "sa_16")) -> Expect:
    """The evaluation ends, the words are in what it says, and these images at least are measured."""

    def check(place: Place, outcome: Outcome) -> None:
        works(*words)(place, outcome)
        assert set(images) <= set(_read(place)["images"]), outcome

    return check


def _names(*words: str) -> Expect:
    """The check ends and lists the problem."""

    def check(place: Place, outcome: Outcome) -> None:
        assert not outcome.hung, outcome
        assert outcome.code in (0, 1), outcome
        assert "Traceback" not in outcome.err, outcome
        listed = next(place.root.glob("*/check_problems.tsv")).read_text()
        for word in words:
            assert word in listed, listed

    return check


def _stays(*words: str) -> Expect:
    """As `_names`, and `--fix` has not moved the file."""

    def check(place: Place, outcome: Outcome) -> None:
        _names(*words)(place, outcome)
        assert not (place.data / ".quarantine").exists(), outcome

    return check


def _ends(place: Place, outcome: Outcome) -> None:
    """It works or is refused, in bounded time and memory."""
    assert not outcome.hung, outcome
    assert outcome.code in (0, 1, 2), outcome
    assert "Traceback" not in outcome.err, outcome


def _sa1b(check: str, evaluation: str, what: str, spoil: Any, found: Expect, measured: Expect) -> list[Fault]:
    """Two rows about one annotation of SA-1B: `data check` and `evaluate`."""
    return [
        Fault(check, f"{what}: data check", _CHECK, found, spoil, slow=True),
        Fault(evaluation, f"{what}: evaluate", _EVALUATE, measured, spoil, slow=True),
    ]


def _instances(
    check: str, evaluation: str, what: str, edit: Edit, found: Expect, measured: Expect, prompt: str = "box"
) -> list[Fault]:
    """Two rows about COCO's file."""
    spoil = functools.partial(_coco_edited, edit)
    line = f"{_EVALUATE_COCO} --prompt {prompt}"
    return [
        Fault(check, f"COCO, {what}: data check", _CHECK_COCO, found, spoil, slow=True),
        Fault(evaluation, f"COCO, {what}: evaluate", line, measured, spoil, slow=True),
    ]


_edit = functools.partial(functools.partial, _edited)
_bytes = functools.partial(functools.partial, _write)
_NOBODY = {"unprivileged": True}
_LITTLE = {"memory_gb": 2.5}
_NAN = float("nan")
_bad_point = _first(point_coords=[[1e6, -5]])
_nan = _first(bbox=[_NAN] * 4, area=float("inf"), point_coords=[[_NAN, _NAN]])
_edge = _first(point_coords=[[0, 0]])


def _escapes(place: Place, outcome: Outcome) -> None:
    works()(place, outcome)
    page = (place.root / "report/report.html").read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


ROWS = [
    Fault(
        "P4d",
        "annotations/val cannot be read: data check",
        _CHECK,
        _names("sa_13.json", "Permission"),
        _unreadable_folder,
        options=_NOBODY,
    ),
    Fault(
        "I2d",
        "a FIFO as annotation: data check",
        f"{_CHECK} --fix",
        _stays("sa_13.json", "FIFO"),
        _fifo,
        options={"timeout": 30},
    ),
    Fault("I2e", "a FIFO as annotation: evaluate", _EVALUATE, _goes_on("sa_13.json", "FIFO"), _fifo, slow=True),
    Fault(
        "annot-h1",
        "one annotation cannot be read: data check --fix",
        f"{_CHECK} --fix",
        _stays("sa_13.json"),
        _unreadable,
        options=_NOBODY,
    ),
    Fault(
        "annot-h2",
        "the dataset is read-only: data check",
        _CHECK,
        refused("check_problems.tsv"),
        _read_only,
        options=_NOBODY,
    ),
    Fault(
        "annot-h3",
        "annotations/val cannot be read: evaluate",
        _EVALUATE,
        _ends,
        _unreadable_folder,
        slow=True,
        options=_NOBODY,
    ),
    Fault(
        "A2e",
        "NaN box, infinite area, NaN points: evaluate",
        _EVALUATE,
        _goes_on("sa_13.json", "left out"),
        _edit(_nan),
        slow=True,
    ),
    Fault(
        "A2be",
        "a point far outside the image: evaluate",
        _EVALUATE,
        _goes_on("sa_13.json", "left out"),
        _edit(_bad_point),
        slow=True,
    ),
    Fault(
        "A3c",
        "counts of 40 MB: data check",
        _CHECK,
        _names("sa_13.json", "runs"),
        _long_counts,
        slow=True,
        options=_LITTLE,
    ),
    Fault(
        "A3e", "counts of 40 MB: evaluate", _EVALUATE, _goes_on("sa_13.json"), _long_counts, slow=True, options=_LITTLE
    ),
    Fault(
        "B5e",
        "COCO, an empty category name: evaluate",
        f"{_EVALUATE_COCO} --prompt text",
        _goes_on("left out", "empty"),
        functools.partial(_coco_edited, _in("categories", name="")),
        slow=True,
    ),
    Fault(
        "B5be",
        "COCO, a category name of 100 words: evaluate",
        f"{_EVALUATE_COCO} --prompt text",
        _goes_on("left out", "tokens"),
        functools.partial(_coco_edited, _in("categories", name="dog " * 100)),
        slow=True,
    ),
    Fault(
        "B11",
        "COCO, an image is a FIFO: data check",
        _CHECK_COCO,
        _names("sa_13.jpg", "FIFO"),
        _coco_fifo,
        options={"timeout": 30},
    ),
    *_sa1b(
        "annot-h4",
        "annot-h5",
        "a mask of 46340x46340 in an image of that size",
        _edit(functools.partial(_giant_mask, of_image=True)),
        _names("sa_13.json"),
        _goes_on("sa_13"),
    ),
    *_sa1b(
        "annot-h6",
        "annot-h7",
        "a mask of 46340x46340 in a small image",
        _edit(functools.partial(_giant_mask, of_image=False)),
        _names("sa_13.json"),
        _goes_on("sa_13"),
    ),
    Fault(
        "annot-h8",
        "NaN box, infinite area, NaN points: data check",
        _CHECK,
        _names("sa_13.json"),
        _edit(_nan),
        slow=True,
    ),
    Fault(
        "annot-h9",
        "a point far outside the image: data check",
        _CHECK,
        _names("sa_13.json", "outside"),
        _edit(_bad_point),
        slow=True,
    ),
    *_sa1b("annot-h10", "annot-h11", "points on the very edge", _edit(_edge), _names(), _goes_on(images=["sa_13"])),
    *_sa1b("annot-h12", "annot-h13", "100000 objects", _edit(_many_objects), _names(), _goes_on()),
    *_sa1b(
        "annot-h14", "annot-h15", "100000 brackets", _bytes(_BRACKETS), _names("sa_13.json"), _goes_on("sa_13.json")
    ),
    *_sa1b(
        "annot-h16",
        "annot-h17",
        "a number of 60 MB",
        _bytes(b"1" * 60_000_000),
        _names("sa_13.json"),
        _goes_on("sa_13.json"),
    ),
    *_sa1b(
        "annot-h18",
        "annot-h19",
        "a width of 1 MB",
        functools.partial(_raw, "width", b"1" * 1_000_000),
        _names("sa_13.json"),
        _goes_on("sa_13.json"),
    ),
    *_sa1b(
        "annot-h20",
        "annot-h21",
        "a lone surrogate and NUL in file_name",
        functools.partial(_raw, "file_name", b'"\\ud800\\u0000.jpg"'),
        _ends,
        _ends,
    ),
    *_sa1b(
        "annot-h22",
        "annot-h23",
        "not UTF-8",
        _bytes(b'{"image": "\xff\xfe"}'),
        _names("sa_13.json"),
        _goes_on("sa_13.json"),
    ),
    *_sa1b(
        "annot-h24",
        "annot-h25",
        "file_name and image_id are paths",
        _edit(lambda file: file["image"].update(file_name="../../../etc/passwd", image_id="../../x")),
        _names(),
        _goes_on(),
    ),
    *_sa1b(
        "annot-h26",
        "annot-h27",
        "negative, empty and giant sizes",
        _edit(lambda file: file["image"].update(width=-1, height=1e308)),
        _names("sa_13.json"),
        _goes_on("sa_13.json"),
    ),
    *_sa1b("annot-h28", "annot-h29", "a list at the top", _bytes(b"[]"), _names("sa_13.json"), _goes_on("sa_13.json")),
    *_sa1b("annot-h30", "annot-h31", "an empty file", _bytes(b""), _names("sa_13.json"), _goes_on("sa_13.json")),
    *_instances(
        "annot-h32",
        "annot-h33",
        "the category <script>",
        _in("categories", name="<script>alert(1)</script>"),
        _names(),
        _goes_on(),
        "text",
    ),
    *_instances("annot-h34", "annot-h35", "ids of no image and no category", _missing_ids, _names("99"), _ends),
    *_instances("annot-h36", "annot-h37", "file_name ../x.jpg", _in("images", file_name="../x.jpg"), _ends, _ends),
    *_instances(
        "annot-h38", "annot-h39", "file_name of 300 letters", _in("images", file_name="x" * 300 + ".jpg"), _ends, _ends
    ),
    *_instances(
        "annot-h40", "annot-h41", "file_name with a lone surrogate", _in("images", file_name="\ud800.jpg"), _ends, _ends
    ),
    *_instances(
        "annot-h42",
        "annot-h43",
        "a polygon with NaN and 1e308",
        _in("annotations", segmentation=[[_NAN, 1.0, 1e308, 1.0, 5.0, 5.0]]),
        _ends,
        _ends,
    ),
    Fault(
        "annot-h44",
        "COCO, an empty category name: data check",
        _CHECK_COCO,
        _names(),
        functools.partial(_coco_edited, _in("categories", name="")),
        slow=True,
    ),
    Fault(
        "annot-h45",
        "COCO, a category name of 100 words: data check",
        _CHECK_COCO,
        _names(),
        functools.partial(_coco_edited, _in("categories", name="dog " * 100)),
        slow=True,
    ),
    *_instances("annot-h46", "annot-h47", "a NaN box", _in("annotations", bbox=[_NAN] * 4), _ends, _ends),
    *_instances("annot-h48", "annot-h49", "ids of 10^30", _giant_ids, _ends, _ends),
    *_instances("annot-h50", "annot-h51", "a polygon of 400000 points", _many_points, _ends, _goes_on()),
    Fault(
        "annot-h52",
        "COCO, 100000 brackets: data check",
        _CHECK_COCO,
        refused("instances_val2017.json"),
        _coco_brackets,
        slow=True,
    ),
    Fault(
        "annot-h53",
        "COCO, 100000 brackets: evaluate",
        _EVALUATE_COCO,
        refused("instances_val2017.json"),
        _coco_brackets,
        slow=True,
    ),
    *_instances("annot-h54", "annot-h55", "two images of one stem", _same_stem, _ends, _ends),
    Fault(
        "annot-h56",
        "a model named like a tag: the report escapes it",
        "evaluate '<img src=x onerror=alert(1)>={merged}' --data {data} --out {root}/report --max-objects 1",
        _escapes,
        slow=True,
    ),
    Fault(
        "new-annot-1",
        "COCO, a NaN box: evaluate leaves it out",
        f"{_EVALUATE_COCO} --prompt box",
        _goes_on("annotations.0.bbox"),
        functools.partial(_coco_edited, _in("annotations", bbox=[_NAN] * 4)),
        slow=True,
    ),
    Fault(
        "new-annot-2",
        "COCO, ids of no image and no category: evaluate leaves them out",
        f"{_EVALUATE_COCO} --prompt box",
        _goes_on("no image has the id 99", "no category has the id 99", images=["sa_15", "sa_16"]),
        functools.partial(_coco_edited, _missing_ids),
        slow=True,
    ),
    Fault(
        "new-annot-3",
        "data check --fix where the disk fails while an annotation is read",
        f"{_CHECK} --fix",
        _stays("sa_13.json"),
        slow=True,
        options={"inject": _read_fails},
    ),
]
