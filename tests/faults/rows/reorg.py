"""From archives and folders to a dataset."""

import errno
import os
import stat
from functools import partial
from pathlib import Path
from typing import Any

from faults.fault import Fault, Outcome, Place, Run, refused, works
from faults.rows.archives import annotation, find, jpeg, pairs, tar_bytes, write_folder, write_tar
from faults.system import fail_fsync, no_locks

_REORG = "reorg --source {root}/source --output {root}/out"
_MADE = ("*out", "out/.reorg.lock")


def _source(place: Place) -> Path:
    return write_folder(place.root / "source", pairs(1, 2))


def _finished(place: Place, run: Run) -> Path:
    """A finished dataset of a tar, which stays."""
    tar = write_tar(place.root / "source/a.tar", pairs(1, 2))
    works("2 pairs put in place")(place, run(_REORG))
    return tar


def _no_traceback(outcome: Outcome) -> None:
    assert outcome.code in (0, 1, 2), outcome
    assert "Traceback" not in outcome.err, outcome


def _skips(*names: str, placed: int) -> Any:
    def check(place: Place, outcome: Outcome) -> None:
        works(f"{placed} pairs put in place", "skipped", code=1)(place, outcome)
        listed = (place.root / "out/reorg_skipped.tsv").read_text()
        assert all(name in listed for name in names), listed

    return check


def _images_unwritable(place: Place) -> None:
    _source(place)
    (place.root / "out/images/train").mkdir(parents=True)
    (place.root / "out/images/train").chmod(0o555)


def _fifo_tar(place: Place) -> None:
    _source(place)
    os.mkfifo(place.root / "source/x.tar")


def _state_is_a_folder(place: Place) -> None:
    (_source(place) / "reorg.json").mkdir()


def _state(content: bytes) -> Any:
    def spoil(place: Place) -> None:
        _source(place)
        write_folder(place.root / "out", {"reorg.json": content})

    return spoil


def _with_precious(place: Place, path: str) -> Path:
    """A source, and a user's own folder, with the parent of `path` in OUTPUT."""
    _source(place)
    (place.root / "out" / path).parent.mkdir(parents=True)
    return write_folder(place.root / "precious", {"thesis.txt": b"1", "1-sa_1.jpg": b"2"})


def _staging_is_a_link(place: Place) -> None:
    precious = _with_precious(place, "images/train/.staging")
    (place.root / "out/images/train/.staging").symlink_to(precious)


def _staging_is_a_file(place: Place) -> None:
    _with_precious(place, "images/train/.staging")
    (place.root / "out/images/train/.staging").write_bytes(b"mine")


def _images_dangle(place: Place) -> None:
    _with_precious(place, "images")
    (place.root / "out/images").symlink_to(place.root / "absent")


def _images_is_a_file(place: Place) -> None:
    _with_precious(place, "images")
    (place.root / "out/images").write_bytes(b"mine")


def _skipped_is_a_folder(place: Place) -> None:
    _source(place)
    (place.root / "out/reorg_skipped.tsv").mkdir(parents=True)


def _all_in_place(place: Place, outcome: Outcome) -> None:
    _no_traceback(outcome)
    assert {path.name for path in (place.root / "out").rglob("sa_*")} == set(pairs(1, 2)), outcome


def _links(place: Place) -> None:
    source = _source(place)
    (source / "loop").symlink_to(source)
    (source / "sa_3.jpg").symlink_to("/etc/passwd")
    (source / "sa_3.json").write_bytes(annotation(3))


def _in_place_again(place: Place, run: Run) -> None:
    _finished(place, run)
    before = _contents(place.root / "out")
    works("0 pairs put in place")(place, run("reorg --output {root}/out"))
    assert _contents(place.root / "out") == before


def _contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("sa_*") if path.is_file()}


def _move_a_dataset(place: Place, run: Run) -> None:
    _finished(place, run)
    _no_traceback(run("reorg --source {root}/out --output {root}/elsewhere --move"))
    found = {path.name: path.read_bytes() for path in place.root.rglob("sa_*")}
    assert found == pairs(1, 2)


def _hidden_files_alone(place: Place, run: Run) -> None:
    tar = write_tar(place.root / "source/a.tar", {".notes.json": b"the only copy"} | pairs(1))
    _no_traceback(run([*place.fill(_REORG), "--delete-tars"]))
    assert tar.exists(), "deleted with a hidden file that was left out"


def _two_tars_in_one(place: Place, run: Run) -> None:
    tar = place.root / "source/a.tar"
    tar.parent.mkdir()
    tar.write_bytes(tar_bytes(pairs(1)) + tar_bytes(pairs(2)))
    _no_traceback(run([*place.fill(_REORG), "--delete-tars"]))
    assert tar.exists(), "deleted with the second archive unread"


def _place_links_to_the_source(place: Place, run: Run) -> None:
    _finished(place, run)
    target = find(place.root / "out", "sa_1.jpg")
    target.unlink()
    target.symlink_to(write_folder(place.root / "extracted", pairs(1)) / "sa_1.jpg")
    _no_traceback(run("reorg --source {root}/extracted --output {root}/out --move"))
    assert target.read_bytes() == jpeg(1), "the file that the link leads to was removed"


def _unreadable_subfolder(place: Place) -> None:
    write_folder(_source(place) / "locked", pairs(3)).chmod(0)


def _staging_has_files(place: Place) -> None:
    _source(place)
    write_folder(place.root / "out/images/train/.staging", {"thesis.txt": b"mine"})


def _state_is_a_fifo(place: Place) -> None:
    _source(place)
    (place.root / "out").mkdir()
    os.mkfifo(place.root / "out/reorg.json")


def _zeros_without_deleting(place: Place, run: Run) -> None:
    _finished(place, run)
    for name in ("sa_1.jpg", "sa_2.json"):
        path = find(place.root / "out", name)
        path.write_bytes(bytes(len(path.read_bytes())))
    _no_traceback(run(_REORG))
    assert _contents(place.root / "out").keys() == _contents(place.root / "out").keys()
    assert find(place.root / "out", "sa_1.jpg").read_bytes() == jpeg(1)
    assert find(place.root / "out", "sa_2.json").read_bytes() == annotation(2)


def _unwritable_source(place: Place, run: Run) -> None:
    source = _source(place)
    works("2 pairs")(place, run(_REORG))
    source.chmod(0o555)
    outcome = run(f"{_REORG} --move", unprivileged=True)
    _no_traceback(outcome)
    assert _contents(source) == pairs(1, 2), outcome
    assert "sa_1.jpg\t" in (place.root / "out/reorg_skipped.tsv").read_text()


def _disk_fails(place: Place, run: Run) -> None:
    tar = write_tar(place.root / "source/a.tar", pairs(1))
    _no_traceback(run([*place.fill(_REORG), "--delete-tars"], inject=partial(fail_fsync, ".jpg", errno.EIO)))
    assert tar.exists(), "deleted although an image could not be written to the disk"


def _unwritable_tars(place: Place, run: Run) -> None:
    tar = write_tar(place.root / "source/a.tar", pairs(1))
    tar.parent.chmod(0o555)
    _no_traceback(run([*place.fill(_REORG), "--delete-tars"], unprivileged=True))
    assert tar.exists()
    assert "not deleted" in (place.root / "out/reorg_skipped.tsv").read_text()


def _folder_in_the_place_of_an_image(place: Place, run: Run) -> None:
    tar = _finished(place, run)
    target = find(place.root / "out", "sa_1.jpg")
    target.unlink()
    write_folder(target, {"thesis.txt": b"mine"})
    write_tar(tar.with_name("b.tar"), pairs(3))
    _no_traceback(run([*place.fill(_REORG), "--delete-tars"]))
    assert (target / "thesis.txt").exists()
    assert tar.exists()
    assert find(place.root / "out", "sa_3.jpg").read_bytes() == jpeg(3), "one bad place kept the others back"


def _unreadable_in_place(place: Place, run: Run) -> None:
    tar = write_tar(place.root / "source/a.tar", pairs(1))
    works("1 pairs put in place")(place, run(_REORG))
    target = find(place.root / "out", "sa_1.jpg")
    target.write_bytes(jpeg(7))
    target.chmod(0)
    _no_traceback(run([*place.fill(_REORG), "--delete-tars"], unprivileged=True))
    assert target.read_bytes() == jpeg(7), "overwritten although it could not be read"
    assert tar.exists()


def _lock_is_a_link(place: Place) -> None:
    _with_precious(place, ".reorg.lock")
    (place.root / "out/.reorg.lock").symlink_to(place.root / "precious/thesis.txt")


def _device(place: Place) -> None:
    _source(place)
    (place.root / "source/x.tar").symlink_to("/dev/zero")
    (place.root / "source/y.tar").symlink_to(place.root / "absent.tar")


def _unreachable_files(place: Place) -> None:
    _source(place)
    folder = write_folder(place.root / "source/listed", pairs(3))
    write_tar(folder / "c.tar", pairs(4))
    folder.chmod(stat.S_IRUSR)  # names can be read, and nothing else


ROWS = [
    Fault(
        "K1b",
        "OUTPUT on a file system without locks",
        _REORG,
        refused(".reorg.lock", "locks", changes=_MADE),
        _source,
        options={"inject": no_locks},
    ),
    Fault(
        "P7",
        "OUTPUT/images/train cannot be written",
        _REORG,
        refused("images/train", "permission"),
        _images_unwritable,
        options={"unprivileged": True},
    ),
    Fault("I2h", "a FIFO named x.tar", _REORG, _skips("x.tar", placed=2), _fifo_tar, options={"timeout": 20}),
    Fault("T3", "a folder named reorg.json in the source", _REORG, works("2 pairs"), _state_is_a_folder),
    Fault("T4c", "reorg.json of 100000 brackets", _REORG, refused("reorg.json"), _state(b"[" * 100000)),
    Fault("T5a", "OUTPUT/images/train/.staging is a link", _REORG, refused(".staging", "link"), _staging_is_a_link),
    Fault("T5b", "OUTPUT/images/train/.staging is a file", _REORG, refused(".staging"), _staging_is_a_file),
    Fault("T6", "OUTPUT/images is a dangling link", _REORG, refused("out/images"), _images_dangle),
    Fault("T6b", "OUTPUT/images is a file", _REORG, refused("out/images"), _images_is_a_file),
    Fault("reorg-h1", "reorg.json with val_ratio x", _REORG, refused("reorg.json"), _state(b'{"val_ratio": "x"}')),
    Fault("reorg-h2", "a binary reorg.json", _REORG, refused("reorg.json"), _state(b"\xff\x00\x01")),
    Fault("reorg-h3", "OUTPUT/reorg_skipped.tsv is a folder", _REORG, _all_in_place, _skipped_is_a_folder),
    Fault("reorg-h4", "--source is an image", "reorg --source {image} --output {root}/out", works("skipped", code=1)),
    Fault("reorg-h5", "--val-ratio nan", f"{_REORG} --val-ratio nan", refused("nan"), _source),
    Fault("reorg-h6", "--workers 0", f"{_REORG} --workers 0", refused("workers", "0"), _source, slow=True),
    Fault(
        "reorg-h7",
        "--output / below /proc",
        "reorg --source {root}/source --output /proc/x",
        refused("/proc/x"),
        _source,
    ),
    Fault(
        "reorg-h8", "a loop of links, and sa_3.jpg -> /etc/passwd", f"{_REORG} --move", _skips("sa_3", placed=2), _links
    ),
    Fault("reorg-h9", "in place on a finished dataset", _in_place_again),
    Fault("reorg-h10", "--move of a finished dataset to another OUTPUT", _move_a_dataset),
    Fault("new-reorg-1", "--delete-tars of a tar with a hidden file", _hidden_files_alone),
    Fault("new-reorg-2", "--delete-tars of two tars joined by cat", _two_tars_in_one),
    Fault("new-reorg-3", "--move where the image in place is a link to the source's", _place_links_to_the_source),
    Fault(
        "new-reorg-4",
        "a subfolder that cannot be read",
        _REORG,
        _skips("locked", placed=2),
        _unreadable_subfolder,
        options={"unprivileged": True},
    ),
    Fault("new-reorg-5", "a user's file in .staging", _REORG, refused("thesis.txt"), _staging_has_files),
    Fault(
        "new-reorg-6", "reorg.json is a FIFO", _REORG, refused("reorg.json"), _state_is_a_fifo, options={"timeout": 20}
    ),
    Fault("new-reorg-7", "a crash left zeros in an image and an annotation", _zeros_without_deleting),
    Fault("new-reorg-8", "--move again where the source cannot be written", _unwritable_source),
    Fault("new-reorg-9", "--delete-tars where the disk fails while images are synced", _disk_fails),
    Fault("new-reorg-10", "--delete-tars where the tar cannot be removed", _unwritable_tars),
    Fault("new-reorg-11", "a folder where an image belongs", _folder_in_the_place_of_an_image),
    Fault("new-reorg-17", "--delete-tars where the image in place cannot be read", _unreadable_in_place),
    Fault(
        "new-reorg-12", ".reorg.lock is a link to a user's file", _REORG, refused("--output", "links"), _lock_is_a_link
    ),
    Fault("new-reorg-13", "x.tar -> /dev/zero, y.tar -> nothing", _REORG, _skips("x.tar", "y.tar", placed=2), _device),
    Fault(
        "new-reorg-14",
        "a subfolder whose files can be listed but not reached",
        f"{_REORG} --workers 1",
        _skips("sa_3.jpg", "c.tar", placed=2),
        _unreachable_files,
        options={"unprivileged": True},
    ),
    Fault(
        "new-reorg-15", "reorg.json with val_ratio NaN", _REORG, refused("reorg.json"), _state(b'{"val_ratio": NaN}')
    ),
    Fault("new-reorg-16", "a torn reorg.json", _REORG, refused("reorg.json"), _state(b'{"split": "sha256", "val_')),
]
