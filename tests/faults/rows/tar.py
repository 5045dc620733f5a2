"""Archives, as `reorg` reads them and deletes them."""

import io
import os
import tarfile

from faults.fault import Fault, Outcome, Place, Run, works
from faults.rows.archives import find, jpeg, pairs, write_tar

_REORG = "reorg --source {root}/source --output {root}/out --delete-tars"


def _with_damage(place: Place, run: Run, damage: bytes) -> tuple[bool, bytes]:
    """Reorganise, overwrite an image by something of its size, reorganise to delete; the tar's state and the image."""
    tar = write_tar(place.root / "source/a.tar", pairs(1, 2, 3))
    run("reorg --source {root}/source --output {root}/out")
    image = find(place.root / "out", "sa_2.jpg")
    assert image.read_bytes() == jpeg(2)
    image.write_bytes(damage)
    outcome = run(_REORG)
    assert outcome.code in (0, 1, 2), outcome
    assert "Traceback" not in outcome.err, outcome
    return tar.exists(), image.read_bytes()


def _same_size(place: Place, run: Run) -> None:
    kept, image = _with_damage(place, run, jpeg(9))
    assert kept, "the only good copy was deleted"
    assert image == jpeg(9), "another image was overwritten"
    assert "sa_2.jpg\t" in (place.root / "out/reorg_skipped.tsv").read_text()


def _zeros(place: Place, run: Run) -> None:
    kept, image = _with_damage(place, run, bytes(len(jpeg(2))))
    assert kept or image == jpeg(2), "the only good copy was deleted"
    assert image == jpeg(2), "the zeros are still there"


def _hostile(place: Place) -> None:
    path = place.root / "source/a.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "", **pax: str) -> None:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size, info.pax_headers = kind, link, len(data), pax
            tar.addfile(info, io.BytesIO(data))

        for name in (f"{place.root}/evil.jpg", "../evil.jpg", "x/../../evil.json", "a\nb.jpg", "\udcff.jpg"):
            add(name, b"evil")
        add("images", kind=tarfile.SYMTYPE, link=str(place.root))
        add("images/evil.jpg", jpeg(1))
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
            add(f"sa_9{number}.jpg", kind=kind, link="/etc/passwd")
        add("plain.jpg", b"evil", path="../../evil.jpg")
        for _ in range(2):
            for name, data in pairs(5).items():
                add(name, data)


def _nothing_outside(place: Place, outcome: Outcome) -> None:
    works("skipped", code=1)(place, outcome)
    assert sorted(os.listdir(place.root)) == ["out", "source"], outcome
    assert (place.root / "source/a.tar").exists(), "deleted although members were skipped"
    assert {path.name for path in (place.root / "out/images").rglob("*.jpg")} == {"sa_5.jpg"}
    assert not any(path.is_symlink() for path in (place.root / "out").rglob("*"))


def _many_members(place: Place) -> None:
    write_tar(place.root / "source/a.tar", {f"{number}.txt": b"" for number in range(60000)})


def _bombs(place: Place) -> None:
    import gzip

    write_tar(place.root / "source/a.tar", pairs(1))
    with gzip.open(place.root / "source/b.tar", "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
    with (place.root / "source/c.tar").open("wb") as file:
        file.truncate(50 << 30)


ROWS = [
    Fault("T2", "--delete-tars where the pair in place has the same size but other content", _same_size),
    Fault("T2b", "--delete-tars after a crash that left an image full of zeros", _zeros),
    Fault(
        "tar-h1",
        "a hostile tar: ../, absolute, link then file below it, hard link, device, FIFO, pax path, duplicates, "
        "newline, a name that is not UTF-8",
        _REORG,
        _nothing_outside,
        _hostile,
    ),
    Fault("tar-h2", "a tar of 60000 empty members", _REORG, works("skipped", code=1), _many_members, slow=True),
    Fault(
        "tar-h3",
        "a gzip bomb called b.tar, and a sparse c.tar of 50 GB of zeros",
        "reorg --source {root}/source --output {root}/out",
        works("1 pairs put in place", code=1),
        _bombs,
        options={"memory_gb": 2},
    ),
]
