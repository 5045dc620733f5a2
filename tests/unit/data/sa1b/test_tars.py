"""Untrusted tars: plain files come out, all else is named, and nothing makes the reader crash or hang."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from efficientsam3.data.sa1b import tars
from efficientsam3.data.sa1b.tars import read_members


def build(path: Path, *members: tarfile.TarInfo | tuple[str, bytes], tar_format: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=tar_format) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def read(path: Path) -> tuple[dict[str, bytes | None], list[tuple[str, str]]]:
    skipped: list[tuple[str, str]] = []
    members = {member.name: member.read() for member in read_members(path, lambda *row: skipped.append(row))}
    return members, skipped


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_plain_files_come_out_in_any_dialect(tmp_path: Path, tar_format: int) -> None:
    files = {f"{'long' * 20}{number}.jpg": bytes([number % 251]) * number for number in (0, 1, 511, 512, 513)}
    parts = [("./sa_0/" + name, data) for name, data in files.items()]
    path = build(tmp_path / "a.tar", special("sa_0", tarfile.DIRTYPE), *parts, tar_format=tar_format)
    assert read(path) == (files, [])


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (("/etc/cron.d/sa_1.jpg", b"x"), "leads out"),
        (("sa_0/../../sa_1.jpg", b"x"), "leads out"),
        (("..\\sa_1.jpg", b"x"), "leads out"),
        (special("sa_1.jpg", tarfile.SYMTYPE, "/etc/passwd"), "a link"),
        (special("sa_1.jpg", tarfile.LNKTYPE, "../sa_2.jpg"), "a link"),
        (special("sa_1.jpg", tarfile.CHRTYPE), "not a plain file"),
        (special("sa_1.jpg", tarfile.BLKTYPE), "not a plain file"),
        (special("sa_1.jpg", tarfile.FIFOTYPE), "not a plain file"),
        (("sa 1\n.jpg", b"x"), "unexpected characters"),
        (("-rf.jpg", b"x"), "unexpected characters"),
    ],
)
def test_hostile_members_are_named_and_the_rest_is_read(
    tmp_path: Path, member: tarfile.TarInfo | tuple[str, bytes], reason: str
) -> None:
    members, skipped = read(build(tmp_path / "a.tar", member, ("sa_3.jpg", b"fine")))
    assert members == {"sa_3.jpg": b"fine"}
    name = member[0] if isinstance(member, tuple) else member.name
    assert skipped[0][0] == name
    assert reason in skipped[0][1]
    assert len(skipped) == 1


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    path = build(tmp_path / "a.tar", ("sa_0/._sa_1.jpg", b"x"), special("..", tarfile.DIRTYPE), (".DS_Store", b""))
    assert read(path)[0] == {}
    assert [name for name, _ in read(path)[1]] == [".."]


def test_what_could_be_missed_is_named(tmp_path: Path) -> None:
    """A hidden file that macOS did not add, and an archive appended by `cat`: the tar may be deleted afterwards."""
    first, second = (build(tmp_path / name, ("sa_1.jpg", b"1")).read_bytes() for name in ("a.tar", "b.tar"))
    (tmp_path / "c.tar").write_bytes(first + second)
    assert read(tmp_path / "c.tar") == ({"sa_1.jpg": b"1"}, [(tars.AFTER_END, read(tmp_path / "c.tar")[1][0][1])])
    assert read(build(tmp_path / "d.tar", ("sa_0/.notes", b"x"))) == ({}, [("sa_0/.notes", "a hidden file")])
    with (tmp_path / "a.tar").open("ab") as file:  # zeros, as a sparse file
        file.truncate(1 << 40)
    assert read(tmp_path / "a.tar") == ({"sa_1.jpg": b"1"}, [])


def test_a_member_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "MAX_MEMBER_BYTES", 100)
    members, skipped = read(build(tmp_path / "a.tar", ("sa_1.jpg", bytes(101)), ("sa_2.jpg", bytes(100))))
    assert list(members) == ["sa_2.jpg"]
    assert "101 bytes" in skipped[0][1]


def test_reading_stops_at_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "MAX_MEMBERS", 3)
    members, skipped = read(build(tmp_path / "a.tar", *((f"sa_{number}.jpg", b"") for number in range(5))))
    assert len(members) == 3
    assert "more than 3 members" in skipped[0][1]


def test_a_header_that_claims_gigabytes_is_refused(tmp_path: Path) -> None:
    """An extended header is read into memory by tarfile, whatever its size."""
    header = special("x", tarfile.XHDTYPE)
    header.size = 8 << 30
    path = tmp_path / "a.tar"
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT))
    members, skipped = read(path)
    assert members == {}
    assert "a header of more than" in skipped[0][1]


@pytest.mark.parametrize("size", [-1024, -512, -(1 << 40)])
def test_negative_sizes_do_not_loop(tmp_path: Path, size: int) -> None:
    header = tarfile.TarInfo("sa_1.jpg")
    header.size = size
    path = tmp_path / "a.tar"
    path.write_bytes(build(tmp_path / "b.tar", ("sa_0.jpg", b"x")).read_bytes()[:1024] + header.tobuf() + bytes(1024))
    members, skipped = read(path)
    assert list(members) == ["sa_0.jpg"]
    assert skipped


@pytest.mark.parametrize("cut", [600, 1023, 1024, 1300, 1536, 1600, 2048])
def test_a_tar_that_is_cut_short_says_so(tmp_path: Path, cut: int) -> None:
    """1024 bytes a member, so 2048 is all of them without the zeros that end a tar."""
    path = build(tmp_path / "a.tar", ("sa_1.jpg", b"1" * 500), ("sa_2.jpg", b"2" * 500))
    path.write_bytes(path.read_bytes()[:cut])
    members, skipped = read(path)
    whole = {name: data for name, data in members.items() if data is not None}
    assert set(whole) <= {"sa_1.jpg", "sa_2.jpg"}
    assert skipped, "missing images would go unnoticed"


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b" + bytes(600), b"GIF89a" * 200])
def test_other_files_are_reported(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    assert read(path)[0] == {}
    assert len(read(path)[1]) == 1


def test_a_damaged_header_in_the_middle_is_not_the_end(tmp_path: Path) -> None:
    data = bytearray(build(tmp_path / "a.tar", *((f"sa_{n}.jpg", b"x") for n in range(3))).read_bytes())
    data[1024 + 100] ^= 0xFF
    (tmp_path / "a.tar").write_bytes(data)
    members, skipped = read(tmp_path / "a.tar")
    assert list(members) == ["sa_0.jpg"]
    assert skipped == [("", "damaged or cut short at byte 1024: the rest was not read")]


def _checksummed(edit: Callable[[bytearray], None]) -> bytes:
    header = bytearray(tarfile.TarInfo("sa_1.jpg").tobuf(tarfile.GNU_FORMAT))
    edit(header)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    headers=st.lists(
        st.tuples(
            st.sampled_from(b"01234567LKxgSDVM\0"), st.integers(0, 340), st.binary(max_size=24), st.binary(max_size=600)
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_headers_end_in_members_or_reasons(tmp_path: Path, headers: list[tuple[int, int, bytes, bytes]]) -> None:
    """Headers of every type with valid checksums and damage anywhere, followed by any data."""
    content = b""
    for kind, position, damage, data in headers:

        def edit(header: bytearray, kind: int = kind, position: int = position, damage: bytes = damage) -> None:
            header[124:136] = b"%011o\0" % 512
            header[156] = kind
            header[position : position + len(damage)] = damage

        content += _checksummed(edit) + data.ljust(512, b"\n")[:512]
    path = tmp_path / "a.tar"
    path.write_bytes(content + bytes(1024))
    members, _ = read(path)
    assert all(tars.SAFE_NAME.fullmatch(name) for name in members)
