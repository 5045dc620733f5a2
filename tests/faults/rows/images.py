"""Files that are no images, no whole ones, or no files, where images are expected."""

import builtins
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from faults.fault import Fault, Outcome, Place, Run, refused, works
from faults.rows.image_files import sparse, write_image

_NOT_UTF8 = os.fsdecode(b"caf\xe9")
_CHECK = "data check {root}/in --dataset images"
_POINT = "--point 20 20"
_PREDICT = f"predict {{merged}} {{root}}/in {_POINT} --out {{root}}/out"
_SPARSE = 200 << 30
_SOON: dict[str, Any] = {"options": {"timeout": 30}}
_FEW_GB: dict[str, Any] = {"options": {"memory_gb": 3, "timeout": 60}}


def _export(place: Place) -> list[str]:
    """An export of {root}/in, whatever is in it, to {root}/new."""
    cfg = place.checkout / "stage1/configs/teacher/sam_vit_huge_sa1b.yaml"
    paths = ["--data-path", place.root / "in", "--output", place.root / "new", "--resume", place.sam3]
    options = [*place.tiny, "DATA.DATASET", "images", "DATA.NUM_WORKERS", "1"]
    return ["export", "--cfg", *map(str, [cfg, *paths, "--batch-size", 2, "--opts", *options])]


def _exported(spoil: Callable[[Place], object], expect: Any, **options: Any) -> Callable[[Place, Run], None]:
    def attempt(place: Place, run: Run) -> None:
        spoil(place)
        expect(place, run(_export(place), **options))

    return attempt


def _two(place: Place) -> Path:
    for number, name in enumerate(("a.jpg", "c.jpg")):
        write_image(place.root / "in" / name, seed=number)
    return place.root / "in"


def _with_fifo(place: Place) -> None:
    os.mkfifo(_two(place) / "b.jpg")


def _with_device(place: Place) -> None:
    (_two(place) / "z.jpg").symlink_to("/dev/zero")


def _with_sparse(size: int) -> Callable[[Place], object]:
    return lambda place: sparse(_two(place) / "sa_999.jpg", size)


def _finds(name: str, *words: str) -> Callable[[Place, Outcome], None]:
    """The check names a file as broken, and nothing else."""

    def check(place: Place, outcome: Outcome) -> None:
        works(code=1)(place, outcome)
        rows = (place.root / "in/check_problems.tsv").read_text().splitlines()[1:]
        assert [Path(row.split("\t")[1]).name for row in rows] == [name], rows
        assert all(word in rows[0] for word in words), rows

    return check


def _skips(*names: str) -> Callable[[Place, Outcome], None]:
    """The export has all but these, and lists them."""

    def check(place: Place, outcome: Outcome) -> None:
        works(code=1 if outcome.code == 1 else 0)(place, outcome)
        listed = "".join(path.read_text() for path in (place.root / "new").rglob("*skipped*"))
        assert all(name in listed + outcome.err for name in names), outcome
        keys = b"".join(path.read_bytes() for path in (place.root / "new/embeddings").glob("*-keys.txt"))
        assert sorted(keys.split()) == [b"a", b"c"], keys

    return check


def _answers(place: Place, outcome: Outcome) -> None:
    works("1 object", "skipped")(place, outcome)
    assert sorted(path.name for path in (place.root / "out").glob("*.json")) == ["a.json", "c.json"]


def _unreadable_train(place: Place) -> None:
    place.images.chmod(0)


def _bomb(path: Path, side: int, scans: int) -> None:
    """A progressive JPEG of one colour: a header that claims much, and a scan that is repeated."""
    Image.fromarray(np.full((64, 64, 3), 127, dtype=np.uint8)).save(path, progressive=True)
    data = bytearray(path.read_bytes())
    for marker in (0xC2, 0xC0):
        place = data.find(bytes((0xFF, marker)))
        if place >= 0:
            data[place + 5 : place + 9] = side.to_bytes(2, "big") * 2
    scan = data.find(b"\xff\xda")
    path.write_bytes(bytes(data[:scan]) + bytes(data[scan:-2]) * scans + b"\xff\xd9")


def _odd_files(place: Place) -> None:
    """Sorts of images and of files that end in .jpg or .png."""
    folder = place.root / "in"
    for mode, name in (
        ("RGB", "a.jpg"),
        ("CMYK", "cmyk.jpg"),
        ("L", "grey.jpg"),
        ("P", "palette.png"),
        ("1", "one.png"),
    ):
        write_image(folder / name, mode=mode)
    write_image(folder / "c.jpg", seed=1)
    write_image(folder / "alpha.png", mode="RGBA")
    write_image(folder / "lossy.webp")
    write_image(folder / "tiny.png", (1, 1))
    write_image(folder / "wide.png", (20000, 1))
    write_image(folder / "with 'quotes\" and spaces.jpg")
    write_image(folder / ("n" * 200 + ".jpg"))
    write_image(folder / "gif.gif").rename(folder / "gif.jpg")
    Image.fromarray(np.full((48, 64), 40000, dtype=np.uint16)).save(folder / "deep.png")
    for name, content in (
        ("empty.jpg", b""),
        ("text.jpg", b"not an image"),
        ("svg.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("avif.jpg", b"\0\0\0\x20ftypavif" + bytes(100)),
        ("heic.jpg", b"\0\0\0\x20ftypheic" + bytes(100)),
        ("postscript.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        ("half.jpg", (folder / "a.jpg").read_bytes()[:800]),
        ("cut.png", (folder / "alpha.png").read_bytes()[:800]),
    ):
        (folder / name).write_bytes(content)
    _bomb(folder / "claims.jpg", 65000, 1)
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "folder.jpg").mkdir()


def _exports_what_it_can(place: Place, outcome: Outcome) -> None:
    works(code=1 if outcome.code == 1 else 0)(place, outcome)
    keys = b"".join(path.read_bytes() for path in (place.root / "new/embeddings").glob("*-keys.txt")).split(b"\n")
    assert {b"a", b"c", b"cmyk", b"grey", b"deep", b"alpha", b"tiny", b"n" * 200} <= set(keys), keys
    assert not {b"text", b"half", b"empty", b"claims", b"avif"} & set(keys), keys


def _checks_what_it_can(place: Place, outcome: Outcome) -> None:
    works(code=1)(place, outcome)
    problems = (place.root / "in/check_problems.tsv").read_text()
    assert all(name in problems for name in ("empty.jpg", "text.jpg", "half.jpg", "claims.jpg", "avif.jpg", "loop.jpg"))


def _answers_what_it_can(place: Place, outcome: Outcome) -> None:
    works("skipped")(place, outcome)
    names = {path.name for path in (place.root / "out").glob("*.json")}
    assert {"a.json", "cmyk.json", "tiny.json", "wide.json"} <= names, names


def _named(name: str) -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        _two(place)
        write_image(place.root / "in/b.jpg").rename(place.root / "in" / name)

    return spoil


def _broken(place: Place) -> None:
    (_two(place) / "b.jpg").write_bytes(b"\xff\xd8 broken")


def _strange_folder(place: Place, run: Run) -> None:
    folder = place.root / _NOT_UTF8
    shutil.move(_two(place), folder)
    outcome = run(["data", "check", folder, "--dataset", "images"])
    works("2")(place, outcome)
    assert (folder / "check_problems.tsv").is_file()


def _strange_output(place: Place, run: Run) -> None:
    _two(place)
    line = _export(place)
    line[line.index("--output") + 1] = os.fspath(place.root / _NOT_UTF8)
    refused("utf-8")(place, run(line))


def _many_scans(scans: int) -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        _bomb(_two(place) / "scans.jpg", 12000, scans)

    return spoil


def _checked(place: Place, outcome: Outcome) -> None:
    works(code=outcome.code if outcome.code in (0, 1) else 0)(place, outcome)


def _eio_in_an_image() -> None:
    """Reading an image named b.jpg fails."""
    opened = builtins.open

    def failing(file: Any, *args: Any, **options: Any) -> Any:
        if isinstance(file, str | os.PathLike) and os.fspath(file).endswith("/b.jpg"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opened(file, *args, **options)

    builtins.open = failing  # type: ignore[assignment]
    import io

    io.open = failing  # type: ignore[assignment]


def _named_b(place: Place) -> None:
    write_image(_two(place) / "b.jpg", seed=5)


ROWS = [
    Fault(
        "P2",
        "the folder of training images cannot be read: export",
        "{export}",
        refused("images/train", "cannot be read"),
        _unreadable_train,
        options={"unprivileged": True},
    ),
    Fault(
        "P2b",
        "the folder of training images cannot be read: data check",
        "data check {data}",
        refused("images/train", "cannot be read"),
        _unreadable_train,
        options={"unprivileged": True},
    ),
    Fault(
        "I2a", "a FIFO named b.jpg: data check", _CHECK, _finds("b.jpg", "FIFO"), _with_fifo, options={"timeout": 30}
    ),
    Fault("I2b", "a FIFO named b.jpg: export", _exported(_with_fifo, _skips("b.jpg"), timeout=30)),
    Fault("I2c", "a FIFO named b.jpg: predict", _PREDICT, _answers, _with_fifo, **_SOON),
    Fault("I3a", "a link to /dev/zero: data check", _CHECK, _finds("z.jpg", "device"), _with_device, **_FEW_GB),
    Fault("I3b", "a link to /dev/zero: predict", _PREDICT, _answers, _with_device, **_FEW_GB),
    Fault("I4a", "a sparse image of 200 GB: export", _exported(_with_sparse(_SPARSE), _skips("sa_999"))),
    Fault("I4b", "a sparse image of 200 GB: data check", _CHECK, _finds("sa_999.jpg", "bytes"), _with_sparse(_SPARSE)),
    Fault(
        "I4c",
        "a sparse image of 15 GB: data check",
        _CHECK,
        _finds("sa_999.jpg", "bytes"),
        _with_sparse(15 << 30),
        **_FEW_GB,
    ),
    Fault("I6c", "OUTPUT's name is not UTF-8: export", _strange_output),
    Fault("images-h1", "a broken image: export", _exported(_broken, _skips("b.jpg"))),
    Fault("images-h2", "odd files: export", _exported(_odd_files, _exports_what_it_can), slow=True),
    Fault("images-h3", "odd files: data check", _CHECK, _checks_what_it_can, _odd_files, slow=True),
    Fault(
        "images-h4",
        "odd files: predict",
        "predict {merged} {root}/in --text dog --threshold 0 --out {root}/out",
        _answers_what_it_can,
        _odd_files,
        slow=True,
        options={"timeout": 120},
    ),
    Fault("images-h5", "a line break in a name: export", _exported(_named("b\nb.jpg"), refused("line break"))),
    Fault("images-h6", "a name that is not UTF-8: export", _exported(_named(_NOT_UTF8 + ".jpg"), refused("utf-8"))),
    Fault("images-h7", "a name that is not UTF-8: predict", _PREDICT, works("1 object"), _named(_NOT_UTF8 + ".jpg")),
    Fault("images-h8", "a folder whose name is not UTF-8: data check", _strange_folder),
    Fault("images-h9", "a progressive JPEG with 50 scans: data check", _CHECK, _checked, _many_scans(50), slow=True),
    Fault(
        "images-h10",
        "a progressive JPEG with 4000 scans: data check",
        _CHECK,
        _finds("scans.jpg", "scans"),
        _many_scans(4000),
        slow=True,
        options={"timeout": 120},
    ),
    Fault(
        "images-h11",
        "EIO while reading an image: export",
        _exported(_named_b, _skips("b.jpg"), inject=_eio_in_an_image),
    ),
]
