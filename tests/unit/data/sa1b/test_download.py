"""Downloading, against a local server that drops connections, ignores ranges, refuses, and lies."""

import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from efficientsam3.data.sa1b.download import download
from efficientsam3.data.sa1b.fetch import Retries
from efficientsam3.data.sa1b.links import HEADER, read_links, select_links, subset_names
from efficientsam3.runtime.errors import UserError

QUICK = Retries(attempts=4, first_wait=0.001)


def make_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(5):
            info = tarfile.TarInfo(f"sa_{number}.jpg")
            info.size = 50_000
            tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
    return buffer.getvalue()


TAR = make_tar()


class Server(ThreadingHTTPServer):
    """Serves TAR under any name, with one of `faults` for each request, then correctly."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[str] = []
        self.always = ""
        self.ranges: list[str | None] = []  # as requested


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        fault = self.server.always or (self.server.faults.pop(0) if self.server.faults else "")
        self.close_connection = True
        if fault.isdecimal():
            self.send_error(int(fault))
            return
        if fault in {"ignores ranges", "sends a page"}:
            asked = None
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if start >= len(TAR) and start:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(TAR)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._send(start, bool(asked), fault)

    def _send(self, start: int, partial: bool, fault: str) -> None:
        body = TAR[start:]
        promised = len(body) + {"promises more": 4096, "promises less": -4096}.get(fault, 0)
        shift = 10 if fault == "sends another range" else 0
        self.send_response(206 if partial else 200)
        if partial and fault != "hides the range":
            first, total = start + shift, start + shift + promised
            self.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
        if fault != "hides its length":
            self.send_header("Content-Length", str(promised))
        self.end_headers()
        if fault == "sends a page":
            body = b"<html>" + bytes(len(body) - 6)
        if fault == "drops":
            body = body[: max(len(body) // 2, 1)]
        if fault == "drops at once":
            body = b""
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def write_links(path: Path, server: Server, *names: str) -> Path:
    lines = [
        "\t".join(HEADER),
        *(f"{name}\thttp://127.0.0.1:{server.server_port}/{name}?signature=x" for name in names),
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    "faults",
    [
        [],
        ["drops"],
        ["drops", "drops", "drops", "drops", "drops", "drops"],  # each brings more, so none counts against the limit
        ["drops", "ignores ranges"],
        ["drops", "hides the range"],
        ["drops", "sends another range"],
        ["drops at once", "500", "503", ""],
        ["429", "408"],
        ["promises more"],
        ["promises less"],
        ["hides its length"],
        ["sends a page"],
        ["drops", "500", "drops", "sends a page"],
    ],
    ids=" ".join,
)
def test_a_whole_tar_arrives_whatever_the_server_does(tmp_path: Path, server: Server, faults: list[str]) -> None:
    server.faults = list(faults)
    links = write_links(tmp_path / "links.txt", server, "sa_000000.tar")
    assert download(links, tmp_path / "tars", retries=QUICK) == 1
    assert (tmp_path / "tars/sa_000000.tar").read_bytes() == TAR
    assert not list((tmp_path / "tars").glob("*.part"))
    assert server.faults == []


def test_a_dropped_download_resumes_where_it_stopped(tmp_path: Path, server: Server) -> None:
    server.faults = ["drops"]
    download(write_links(tmp_path / "links.txt", server, "sa_0.tar"), tmp_path, retries=QUICK)
    assert server.ranges == [None, f"bytes={len(TAR) // 2}-"]


def test_a_later_run_continues_the_part(tmp_path: Path, server: Server) -> None:
    (tmp_path / "sa_0.tar.part").write_bytes(TAR[:1000])
    (tmp_path / "sa_1.tar.part").write_bytes(TAR)
    (tmp_path / "sa_2.tar.part").write_bytes(TAR + b"too much")
    names = ["sa_0.tar", "sa_1.tar", "sa_2.tar"]
    download(write_links(tmp_path / "links.txt", server, *names), tmp_path, workers=1, retries=QUICK)
    assert server.ranges == ["bytes=1000-", f"bytes={len(TAR)}-", f"bytes={len(TAR) + 8}-", None]
    assert all((tmp_path / name).read_bytes() == TAR for name in names)


def test_a_finished_tar_is_not_requested_again(tmp_path: Path, server: Server) -> None:
    links = write_links(tmp_path / "links.txt", server, "sa_0.tar", "sa_1.tar")
    assert download(links, tmp_path, retries=QUICK) == 2
    server.ranges.clear()
    assert download(links, tmp_path, retries=QUICK) == 0
    assert server.ranges == []


@pytest.mark.parametrize("status", ["403", "401", "410"])
def test_an_expired_link_is_reported_and_not_retried(tmp_path: Path, server: Server, status: str) -> None:
    server.always = status
    links = write_links(tmp_path / "links.txt", server, "sa_0.tar")
    with pytest.raises(UserError, match=rf"sa_0\.tar: the link has expired \({status}\).*get a new file from https"):
        download(links, tmp_path, retries=QUICK)
    assert len(server.ranges) == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("404", "answered 404"),
        ("500", "answered 500, 4 times in a row"),
        ("promises less", "not a whole tar"),
        ("sends a page", "not a whole tar"),
        ("drops at once", "less than the"),
    ],
)
def test_a_server_that_keeps_failing_is_given_up(tmp_path: Path, server: Server, fault: str, words: str) -> None:
    server.always = fault
    links = write_links(tmp_path / "links.txt", server, "sa_0.tar")
    with pytest.raises(UserError, match=words):
        download(links, tmp_path, retries=QUICK)
    assert not (tmp_path / "sa_0.tar").exists()


def test_an_old_part_does_not_count_as_progress(tmp_path: Path, server: Server) -> None:
    (tmp_path / "sa_0.tar.part").write_bytes(TAR[:1000])
    server.always = "500"
    with pytest.raises(UserError, match="4 times in a row"):
        download(write_links(tmp_path / "links.txt", server, "sa_0.tar"), tmp_path, retries=QUICK)
    assert (tmp_path / "sa_0.tar.part").stat().st_size == 1000


def test_one_bad_link_does_not_keep_the_others_back(tmp_path: Path, server: Server) -> None:
    server.faults = ["403"]
    links = write_links(tmp_path / "links.txt", server, "sa_0.tar", "sa_1.tar", "sa_2.tar")
    with pytest.raises(UserError, match=r"1 of 3 downloads failed.*expired"):
        download(links, tmp_path, workers=1, retries=QUICK)
    assert len(list(tmp_path.glob("*.tar"))) == 2


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    links = tmp_path / "links.txt"
    links.write_text("file_name\tcdn_link\nsa_0.tar\thttp://127.0.0.1:1/sa_0.tar\n")
    with pytest.raises(UserError, match="refused"):
        download(links, tmp_path, retries=QUICK)


def test_a_full_disk_ends_the_download(tmp_path: Path, server: Server) -> None:
    (tmp_path / "sa_0.tar.part").mkdir()
    with pytest.raises(UserError, match="Cannot write"):
        download(write_links(tmp_path / "links.txt", server, "sa_0.tar"), tmp_path, retries=QUICK)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "does not begin with"),
        ("name\tlink\n", "does not begin with"),
        ("file_name\tcdn_link\n../x.tar\thttp://h/x\n", "Line 2"),
        ("file_name\tcdn_link\nx.tar\tfile:///etc/passwd\n", "Line 2"),
        ("file_name\tcdn_link\nx.tar\thttp://h/x\nx.tar\thttp://h/y\n", "Line 3"),
        ("file_name\tcdn_link\nx.tar\n", "Line 2"),
        ("file_name\tcdn_link\nx.tar\thttp://[::1/x\n", "Invalid IPv6 URL"),
        ("file_name\tcdn_link\nx.tar\thttp://h:abc/x\n", "Port could not be cast"),
        ("file_name\tcdn_link\nx.tar\thttp:///x\n", "names no server"),
        ("file_name\tcdn_link\nx.tar\thttp://h/\u00e9\n", "not ASCII"),
    ],
)
def test_wrong_links_are_refused(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "links.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        read_links(path)


def test_a_binary_or_missing_links_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("binary", "absent"):
        with pytest.raises(UserError, match="ai.meta.com"):
            read_links(tmp_path / name)


def test_the_published_subsets() -> None:
    ten, one = subset_names("10p"), subset_names("1p")
    assert ten is not None
    assert one is not None
    assert (len(set(ten)), len(set(one))) == (100, 10)
    assert set(one) < set(ten)
    links = {name: f"http://h/{name}" for name in [*ten, "sa_000000.tar", "licence.txt"]}
    assert list(select_links(links, "1p")) == one
    assert len(select_links(links, "all")) == 101
    del links[one[3]]
    with pytest.raises(UserError, match=f"{one[3]}.*1 of the 10 tars of 1p"):
        select_links(links, "1p")
