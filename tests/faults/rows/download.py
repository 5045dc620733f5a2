"""Downloads, by links and from servers that are wrong, silent or hostile."""

import functools
import gzip
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from faults.fault import Fault, Outcome, Place, Run, refused, works
from faults.rows.archives import pairs, tar_bytes
from faults.system import small_disk

TAR = tar_bytes(pairs(1, 2, 3))
_DIGITS = "9" * 5000


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, answer: Callable[["_Handler"], None]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        with suppress(OSError):  # the other side is gone
            self.server.answer(self)

    def send(self, body: bytes = TAR, status: int = 200, length: str | None = None, **headers: str) -> None:
        """Answer; `Content_Length` in `headers` replaces the true one."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)) if length is None else length)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def _serving(answer: Callable[[_Handler], None]) -> Iterator[str]:
    with _Server(answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _write_links(place: Place, link: str, name: str = "sa_0.tar") -> None:
    (place.root / "links.txt").write_text(f"file_name\tcdn_link\n{name}\t{link}\n", encoding="utf-8")


_DOWNLOAD = "download --links {root}/links.txt --output {root}/tars"


def _hurry() -> None:
    """Between attempts, a second is long enough."""
    sleep, wait = time.sleep, threading.Event.wait
    time.sleep = lambda seconds: sleep(min(seconds, 0.01))
    threading.Event.wait = lambda event, timeout=None: wait(  # type: ignore[method-assign]
        event, 0.01 if timeout is not None and timeout >= 1 else timeout
    )


def _ends_whole(place: Place, outcome: Outcome) -> None:
    works("1 tars downloaded")(place, outcome)
    assert (place.root / "tars/sa_0.tar").read_bytes() == TAR


def _fails(*words: str) -> Callable[[Place, Outcome], None]:
    return functools.partial(_is_refused, words)


def _is_refused(words: tuple[str, ...], place: Place, outcome: Outcome) -> None:
    refused(*words)(place, outcome)
    assert not (place.root / "tars/sa_0.tar").exists(), "half a file under the tar's name"


def _server(
    case: str, what: str, answer: Callable[[_Handler], None], expect: Callable[[Place, Outcome], None]
) -> Fault:
    """A row about a server that answers so."""

    def command(place: Place, run: Run) -> None:
        with _serving(answer) as address:
            _write_links(place, f"{address}/sa_0.tar")
            expect(place, run(_DOWNLOAD, inject=_hurry))

    return Fault(case, f"server: {what}", command, slow=True)


def _link(case: str, what: str, link: str, *words: str, name: str = "sa_0.tar") -> Fault:
    """A row about a line of the file of links."""
    spoil = functools.partial(_write_links, link=link, name=name)
    return Fault(case, f"links: {what}", _DOWNLOAD, refused(*words), spoil, slow=True, options={"inject": _hurry})


def _redirect(handler: _Handler, to: str) -> None:
    if handler.path == "/good":
        handler.send()
    else:
        handler.send(b"", 302, Location=to)


def _signal(case: str, what: str, number: int, code: int, answer: Callable[[_Handler], None]) -> Fault:
    """A row about a signal, half a second after the server was asked."""

    def command(place: Place, run: Run) -> None:
        asked = threading.Event()

        def note(handler: _Handler) -> None:
            asked.set()
            answer(handler)

        with _serving(note) as address:
            _write_links(place, f"{address}/sa_0.tar")
            outcome = run(_DOWNLOAD, signals=[(3, number)], timeout=20)
        assert asked.is_set()
        assert not outcome.hung, outcome
        assert outcome.code == code, outcome
        assert outcome.seconds < 10, outcome
        assert "Traceback" not in outcome.err, outcome

    return Fault(case, what, command, slow=True)


def _silent(_: _Handler) -> None:
    time.sleep(30)


def _drip(handler: _Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    for _ in range(15):
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(2)


def _many_headers(handler: _Handler) -> None:
    handler.send(**{f"X_{number}": "x" for number in range(300)})


def _range_with_a_giant_total(handler: _Handler) -> None:
    handler.send(TAR[100:], 206, Content_Range=f"bytes 100-{len(TAR) - 1}/{_DIGITS}")


def _lies_about_the_range(handler: _Handler) -> None:
    handler.send(TAR[50:], 206, Content_Range=f"bytes 50-{len(TAR) - 1}/{len(TAR)}")


def _giant_total(place: Place, run: Run) -> None:
    with _serving(_range_with_a_giant_total) as address:
        _write_links(place, f"{address}/sa_0.tar")
        (place.root / "tars").mkdir()
        (place.root / "tars/sa_0.tar.part").write_bytes(TAR[:100])
        _fails("sa_0.tar")(place, run(_DOWNLOAD, inject=_hurry))
        assert (place.root / "tars/sa_0.tar.part").read_bytes() == TAR[:100]


def _never_ends(handler: _Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(1 << 20))


def _full_disk(place: Place, run: Run) -> None:
    with small_disk(place.root / "tars", "30m"), _serving(_never_ends) as address:
        _write_links(place, f"{address}/sa_0.tar")
        _fails("cannot write", "space")(place, run(_DOWNLOAD))


def _links_are_a_fifo(place: Place) -> None:
    os.mkfifo(place.root / "links.txt")


def _garbage(handler: _Handler) -> None:
    handler.wfile.write(b"\x00\xff not HTTP at all\r\n\r\n" * 10)


ROWS = [
    Fault(
        "I2i", "a FIFO as --links", _DOWNLOAD, refused("links.txt", "FIFO"), _links_are_a_fifo, options={"timeout": 20}
    ),
    _server("D-bigint", "Content-Length of 5000 digits", lambda it: it.send(length=_DIGITS), _fails("sa_0.tar")),
    Fault("D-range", "server: 206 with a total of 5000 digits", _giant_total, slow=True),
    _link("D-ipv6", "http://[::1 (not closed)", "http://[::1/sa_0.tar", "line 2", "sa_0.tar"),
    _link("D-ascii", "a letter that is not ASCII", "http://127.0.0.1:9/é.tar", "line 2", "ASCII"),
    _signal("D-intr", "SIGINT while the server says nothing", signal.SIGINT, 130, _silent),
    _signal("D-term", "SIGTERM while the server says nothing", signal.SIGTERM, 143, _silent),
    _signal("D-intrdrip", "SIGINT while the server drips a byte every 2 s", signal.SIGINT, 130, _drip),
    _server("download-h1", "a whole tar", _Handler.send, _ends_whole),
    _server("download-h2", "redirect to the good one", lambda it: _redirect(it, "/good"), _ends_whole),
    _server("download-h3", "redirect to a file", lambda it: _redirect(it, "file:///etc/passwd"), _fails("sa_0.tar")),
    _server("download-h4", "redirect to data:", lambda it: _redirect(it, "data:text/plain,x"), _fails("sa_0.tar")),
    _server("download-h5", "404", lambda it: it.send(b"", 404), _fails("sa_0.tar", "404")),
    _link("download-h6", "port abc", "http://127.0.0.1:abc/sa_0.tar", "sa_0.tar"),
    _link("download-h7", "a space", "http://127.0.0.1:9/a b.tar", "sa_0.tar"),
    _link("download-h8", "http:///a.tar", "http:///a.tar", "sa_0.tar"),
    _link("download-h9", "file:///etc/passwd", "file:///etc/passwd", "line 2", "sa_0.tar"),
    _server("download-h10", "300 header lines", _many_headers, _fails("sa_0.tar")),
    _link("download-h11", "the name ../x.tar", "http://127.0.0.1:9/x", "line 2", "../x.tar", name="../x.tar"),
    _link("download-h12", "the name /etc/x.tar", "http://127.0.0.1:9/x", "line 2", "/etc/x.tar", name="/etc/x.tar"),
    _link("download-h13", "the name .tar", "http://127.0.0.1:9/x", "line 2", ".tar", name=".tar"),
    _link("download-h14", "a name of 300 letters", "http://127.0.0.1:9/x", "line 2", name="a" * 300),
    _link("download-h15", "the name a b.tar", "http://127.0.0.1:9/x", "line 2", "a b.tar", name="a b.tar"),
    Fault("download-h16", "a server that never ends, a disk of 30 MB", _full_disk, slow=True),
    _server("download-h17", "429", lambda it: it.send(b"", 429), _fails("sa_0.tar", "429")),
    _server("download-h18", "503", lambda it: it.send(b"", 503), _fails("sa_0.tar", "503")),
    _server("download-h19", "less than promised", lambda it: it.send(length=str(len(TAR) + 9)), _fails("sa_0.tar")),
    _server("download-h20", "more than promised", lambda it: it.send(length=str(len(TAR) // 2)), _fails("sa_0.tar")),
    _server("download-h21", "a page instead of a tar", lambda it: it.send(b"<html>no</html>"), _fails("sa_0.tar")),
    _server("download-h22", "another range than asked for", _lies_about_the_range, _fails("sa_0.tar")),
    _server("download-h23", "a compressed tar", lambda it: it.send(gzip.compress(TAR)), _fails("sa_0.tar", "tar")),
    _server("download-h24", "garbage instead of HTTP", _garbage, _fails("sa_0.tar")),
    _server(
        "download-h25", "redirect to ftp:", lambda it: _redirect(it, "ftp://127.0.0.1:9/a.tar"), _fails("sa_0.tar")
    ),
    _server("download-h26", "redirect to itself", lambda it: _redirect(it, "/sa_0.tar"), _fails("sa_0.tar")),
    _server("new-download-1", "redirect to a bad link", lambda it: _redirect(it, "http://[::1/"), _fails("sa_0.tar")),
]
