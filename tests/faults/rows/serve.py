"""Requests, clients and settings that the page's server must outlive."""

import atexit
import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from faults.fault import Fault, Outcome, Place, Run, refused
from faults.rows.image_files import sparse, write_image

_CODE = "from efficientsam3.cli import main; raise SystemExit(main())"
_HTML = "<img src=x onerror=alert(1)>.jpg"


class _Server:
    """A server of its own folder, until it is stopped."""

    def __init__(self, model: Path) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="fault-serve-"))
        atexit.register(self.stop)
        shutil.copytree(model, self.root / "onnx")
        (self.root / "ort").mkdir()
        (self.root / "ort/ort.wasm.min.mjs").write_text("")
        self.images = self.root / "images"
        for name in ("a.jpg", "b.jpg", "c.jpg", _HTML):
            write_image(self.images / name)
        (self.root / "outside.jpg").write_text("secret")
        (self.images / "secret.txt").write_text("secret")
        (self.images / "passwd.jpg").symlink_to("/etc/passwd")
        sparse(self.images / "large.jpg", 300 << 20)
        line = ["serve", self.root / "onnx", "--onnxruntime-web", self.root / "ort", "--pictures", self.images]
        self._log = self.root / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _CODE, *map(str, line), "--port", "0"],
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        deadline = time.monotonic() + 60
        while "until Ctrl-C" not in self.log and time.monotonic() < deadline and self.process.poll() is None:
            time.sleep(0.05)
        assert "http://127.0.0.1:" in self.log, self.log
        self.port = int(self.log.rpartition("127.0.0.1:")[2].partition("/")[0])
        self.folder = (
            "/images/" if self.status(b"GET /images.json HTTP/1.0\r\nHost: localhost\r\n\r\n") == 200 else "/pictures/"
        )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/task"))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def ask(self, request: bytes) -> bytes:
        with self.connect() as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(request)
            answer = b""
            with contextlib.suppress(ConnectionError):
                while part := connection.recv(1 << 16):
                    answer += part
            return answer

    def status(self, request: bytes) -> int:
        """Of the answer; 0 where there is none."""
        line = self.ask(request).partition(b"\r\n")[0].split()
        return int(line[1]) if len(line) > 1 and line[1].isdigit() else 0

    def get(self, path: str, host: str = "localhost") -> bytes:
        return self.ask(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode("latin-1"))

    def check(self) -> None:
        """It answers, and no thread has failed."""
        assert self.get("/").startswith(b"HTTP/1.0 200"), self.log
        assert "Traceback" not in self.log, self.log

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(10)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.root, ignore_errors=True)


_shared: list[_Server] = []


def _one_for_all(place: Place) -> _Server:
    if not _shared or _shared[0].process.poll() is not None:
        _shared[:] = [_Server(place.onnx)]
    return _shared[0]


@contextlib.contextmanager
def _own(place: Place) -> Iterator[_Server]:
    server = _Server(place.onnx)
    try:
        yield server
    finally:
        server.stop()


def _asked(request: bytes, *statuses: int, check: Callable[[bytes], object] = lambda _: None) -> Any:
    """A request to the server of all rows: it has one of the statuses, and the server goes on."""

    def attempt(place: Place, _: Run) -> None:
        server = _one_for_all(place)
        answer = server.ask(request)
        line = answer.partition(b"\r\n")[0].split()
        status = int(line[1]) if len(line) > 1 and line[1].isdigit() else 0
        assert status in statuses, answer[:500]
        assert b"root:" not in answer
        assert b"secret" not in answer.partition(b"\r\n\r\n")[2]
        check(answer)
        server.check()

    return attempt


def _path(path: str) -> bytes:
    return f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode("latin-1")


def _host(*lines: str) -> bytes:
    return "".join(["GET / HTTP/1.0\r\n", *(f"{line}\r\n" for line in lines), "\r\n"]).encode()


def _loopback_alone(place: Place, _: Run) -> None:
    server = _one_for_all(place)
    listening = {
        columns[1]
        for columns in map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:])
        if columns[3] == "0A"
    }
    assert f"0100007F:{server.port:04X}" in listening
    assert f"00000000:{server.port:04X}" not in listening


def _is_an_image(answer: bytes) -> None:
    assert b"Content-Type: image/jpeg" in answer
    assert b"nosniff" in answer


def _link(place: Place, _: Run) -> None:
    """The user's own link is served as the image that it says it is, which no page can read as text."""
    server = _one_for_all(place)
    _is_an_image(server.get(f"{server.folder}passwd.jpg"))
    server.check()


def _markup(place: Place, _: Run) -> None:
    server = _one_for_all(place)
    head, _, body = server.get(server.folder[:-1] + ".json").partition(b"\r\n\r\n")
    assert _HTML in json.loads(body)
    assert b"Content-Type: application/json" in head
    assert b"nosniff" in head


def _no_script(answer: bytes) -> None:
    assert b"<script>" not in answer.partition(b"\r\n\r\n")[2]


def _closed(answer: bytes) -> None:
    head = answer.partition(b"\r\n\r\n")[0]
    assert b"Access-Control-Allow" not in head
    assert b"default-src 'none'" in head
    assert b"Cross-Origin-Opener-Policy: same-origin" in head
    assert b"Cross-Origin-Embedder-Policy: require-corp" in head


def _says_505(answer: bytes) -> None:
    assert b"505" in answer


def _no_header(answer: bytes) -> None:
    assert b"Injected" not in answer.partition(b"\r\n\r\n")[0]


def _many_connections(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * count)), hard))


def _idle(place: Place, _: Run) -> None:
    _many_connections(1100)
    with _own(place) as server, contextlib.ExitStack() as stack:
        for _number in range(1100):
            stack.enter_context(server.connect())
        server.check()


def _slow_loris(place: Place, _: Run) -> None:
    """A byte now and then keeps no connection, and those that wait keep nobody out."""
    with _own(place) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _number in range(400)]
        for client in clients:
            with contextlib.suppress(OSError):
                client.sendall(b"GET / HTTP/1.0\r\nX: ")
        server.check()
        assert server.threads < 100
        end = time.monotonic() + 30
        while time.monotonic() < end and server.threads > 4:
            for client in clients:
                with contextlib.suppress(OSError):
                    client.sendall(b"x")
            time.sleep(0.5)
        assert server.threads <= 4
        server.check()


def _removed(place: Place, _: Run) -> None:
    server = _one_for_all(place)
    (server.images / "b.jpg").unlink()
    assert server.get(f"{server.folder}b.jpg").startswith(b"HTTP/1.0 404")
    server.check()


def _fifo(place: Place, _: Run) -> None:
    server = _one_for_all(place)
    (server.images / "c.jpg").unlink()
    os.mkfifo(server.images / "c.jpg")
    assert server.get(f"{server.folder}c.jpg").startswith(b"HTTP/1.0 404")
    server.check()


def _leave(place: Place, _: Run) -> None:
    server = _one_for_all(place)
    for _number in range(20):
        with server.connect() as client:
            client.sendall(_path(f"{server.folder}large.jpg"))
            assert client.recv(1000).startswith(b"HTTP/1.0 200")
    time.sleep(0.5)
    server.check()


def _ctrl_c(place: Place, _: Run) -> None:
    with _own(place) as server:
        server.check()
        assert server.end(signal.SIGINT) == 0
        assert "Traceback" not in server.log


def _terminated(place: Place, _: Run) -> None:
    with _own(place) as server, server.connect() as client:
        client.sendall(b"GET / HT")
        assert server.end(signal.SIGTERM) == 128 + signal.SIGTERM
        assert "Traceback" not in server.log


_SERVE = "serve {onnx} --onnxruntime-web {root}/ort --port 0"


def _runtime(place: Place) -> None:
    (place.root / "ort").mkdir()
    (place.root / "ort/ort.wasm.min.mjs").write_text("")


def _in_use(place: Place, run: Run) -> None:
    _runtime(place)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = run(f"serve {{onnx}} --onnxruntime-web {{root}}/ort --port {port}", timeout=20)
    refused(str(port), "in use")(place, outcome)


def _edited(edit: Callable[[dict[str, Any]], object]) -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        _runtime(place)
        path = place.onnx / "model.json"
        manifest = json.loads(path.read_text())
        edit(manifest)
        path.write_text(json.dumps(manifest))

    return spoil


def _graph_file(name: str) -> Callable[[Place], None]:
    return _edited(lambda manifest: next(iter(manifest["graphs"].values())).update(file=name))


def _refused_or_served(place: Place, outcome: Outcome) -> None:
    """A page without a model is served, as there may be one later; whatever it is, it ends in no traceback."""
    assert outcome.code in (0, 2), outcome
    assert "Traceback" not in outcome.err, outcome


def _refuses(case: str, what: str, words: str, *sentence: str, spoil: Callable[[Place], None] = _runtime) -> Fault:
    return Fault(
        case, what, f"{_SERVE} {words}", refused(*sentence), spoil, slow=True, options={"timeout": 20, "memory_gb": 4}
    )


_PATHS = [
    "/../../etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "//etc/passwd",
    "/images/../secret.txt",
    "/images/%2e%2e/outside.jpg",
    "/images/secret.txt",
    "/model/../../base/teacher/tiny_sam3.pt",
    "/images/..%5c..%5coutside.jpg",
    "/images/a.jpg%00.txt",
    "/%252e%252e/etc/passwd",
    "/model/",
    "/images/",
    "http://evil/etc/passwd",
    "/\xff",
    "/app.js/../../serve.py",
]
_HOSTS: list[tuple[str, tuple[str, ...], tuple[int, ...]]] = [
    ("evil.com", ("Host: evil.com",), (403,)),
    ("localhost.evil.com", ("Host: localhost.evil.com",), (403,)),
    ("127.0.0.1.nip.io", ("Host: 127.0.0.1.nip.io",), (403,)),
    ("evil.com:35971", ("Host: evil.com:35971",), (403,)),
    ("an empty one", ("Host:",), (403,)),
    ("localhost", ("Host: localhost",), (200,)),
    ("[::1]", ("Host: [::1]",), (200, 403)),
    ("127.0.0.1@evil.com", ("Host: 127.0.0.1@evil.com",), (403,)),
    ("0x7f.1", ("Host: 0x7f.1",), (403,)),
    ("127.1", ("Host: 127.1",), (403,)),
    ("127.0.0.2", ("Host: 127.0.0.2",), (200,)),
    ("none", (), (403,)),
    ("two, evil first", ("Host: evil.com", "Host: localhost"), (403,)),
    ("two, evil second", ("Host: localhost", "Host: evil.com"), (200, 403)),
]
_METHODS = ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "AAAAAAAAAA")


def _method(name: str) -> bytes:
    return f"{name} / HTTP/1.0\r\nHost: localhost\r\nContent-Length: 10000000000\r\n\r\n".encode()


def _slow(case: int | str, what: str, attempt: Callable[[Place, Run], None]) -> Fault:
    return Fault(f"serve-h{case}" if isinstance(case, int) else case, what, attempt, slow=True)


ROWS = [
    _slow("V8", "400 clients that send half a request, and then a byte a moment", _slow_loris),
    _slow("V9b", "an image is replaced by a FIFO while serving", _fifo),
    _refuses("V13f", "--host is empty", "--host ''", "--host"),
    _refuses("V13i", "--host é, in Latin-1", "--host " + os.fsdecode(b"\xe9"), "--host", "cannot be listened on"),
    _slow(1, "where it listens by default", _loopback_alone),
    *(
        _slow(2 + number, f"the path {path!r}", _asked(_path(path), 400, 403, 404))
        for number, path in enumerate(_PATHS)
    ),
    _slow(17, "an image that is a link to /etc/passwd", _link),
    *(
        _slow(18 + number, f"the Host {name}", _asked(_host(*lines), *statuses))
        for number, (name, lines, statuses) in enumerate(_HOSTS)
    ),
    _slow(32, "markup in an image's name", _markup),
    _slow(33, "markup in the URL", _asked(_path("/<script>alert(1)</script>"), 404, check=_no_script)),
    _slow(34, "the headers of an answer", _asked(_path("/"), 200, check=_closed)),
    *(_slow(35 + number, f"{name} of 10 GB", _asked(_method(name), 405, 501)) for number, name in enumerate(_METHODS)),
    _slow(41, "a URL of 1 MB", _asked(_path("/" + "a" * (1 << 20)), 0, 414)),
    _slow(42, "a header of 1 MB", _asked(_host("X: " + "a" * (1 << 20)), 0, 431)),
    _slow(43, "1000 headers", _asked(_host(*(f"X{number}: 1" for number in range(1000))), 0, 431)),
    _slow(44, "garbage", _asked(bytes(range(128, 256)) * 4 + b"\r\n\r\n", 0, 400)),
    _slow(45, "HTTP/0.9", _asked(b"GET /\r\n\r\n", 0, 403)),
    _slow(46, "HTTP/9.9", _asked(b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", 0, 505, check=_says_505)),
    _slow(47, "a line break in the path", _asked(_path("/%0d%0aInjected:%201"), 404, check=_no_header)),
    _slow(48, "1100 connections that ask for nothing", _idle),
    _slow(49, "an image is removed while serving", _removed),
    _slow(50, "20 clients leave in the middle of a large file", _leave),
    _slow(51, "Ctrl-C", _ctrl_c),
    _slow(52, "SIGTERM while a connection is half open", _terminated),
    _slow(53, "the port is in use", _in_use),
    _refuses("serve-h54", "--port -1", "--port -1", "--port -1"),
    _refuses("serve-h55", "--port 80000", "--port 80000", "80000"),
    _refuses("serve-h56", "a host that is not there", "--host nohost.invalid", "nohost.invalid"),
    _refuses("serve-h57", "--host ::1", "--host ::1", "::1"),
    _refuses("serve-h58", "a host of 300 characters", f"--host {'a' * 300}", "--host"),
    _refuses("serve-h59", "a host with an empty part", "--host a..b", "a..b"),
    _refuses("serve-h60", "a graph ../../etc/passwd", "", "etc/passwd", spoil=_graph_file("../../etc/passwd")),
    _refuses(
        "serve-h61",
        "a tokenizer /etc/passwd",
        "",
        "/etc/passwd",
        spoil=_edited(lambda manifest: manifest["tokenizer"].update(file="/etc/passwd")),
    ),
    _refuses("serve-h62", "a graph ..", "", "export the model again", spoil=_graph_file("..")),
    _refuses("serve-h63", "a graph without a name", "", "onnx", spoil=_graph_file("")),
    _refuses("serve-h64", "a graph's name with backslashes", "", "onnx", spoil=_graph_file("..\\..\\x")),
    Fault(
        "serve-h65",
        "no graphs",
        _SERVE,
        _refused_or_served,
        _edited(lambda manifest: manifest.update(graphs={}, variants={})),
        slow=True,
        options={"signals": [(3, signal.SIGINT)]},
    ),
]
