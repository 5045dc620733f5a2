import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus

import pytest

from efficientsam3.predict import bounded_server
from efficientsam3.predict.bounded_server import BoundedServer, PromptReading

_REQUEST = b"GET / HTTP/1.0\r\n\r\n"


class _Handler(PromptReading):
    def do_GET(self) -> None:
        self.send_response(HTTPStatus.OK)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[BoundedServer]:
    monkeypatch.setattr(bounded_server, "_MOST_CONNECTIONS", 3)
    monkeypatch.setattr(bounded_server, "_SECONDS_TO_ASK", 0.5)
    with BoundedServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01]).start()
        yield server
        server.shutdown()


def _connect(server: BoundedServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.server_port), timeout=20)


def test_the_oldest_that_has_not_asked_makes_room(server: BoundedServer) -> None:
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(_connect(server)) for _ in range(10)]
        asking = stack.enter_context(_connect(server))
        asking.sendall(_REQUEST)
        assert asking.recv(100).startswith(b"HTTP/1.0 200")
        assert idle[0].recv(1) == b""


def test_a_dripping_request_ends_in_time(server: BoundedServer) -> None:
    with _connect(server) as client, contextlib.suppress(ConnectionError):
        for _ in range(100):
            client.sendall(b"x")
            time.sleep(0.05)
        pytest.fail("the connection stays")


def test_connections_end_and_are_forgotten(server: BoundedServer) -> None:
    for _ in range(7):
        with _connect(server) as client:
            client.sendall(_REQUEST)
            while client.recv(1000):
                pass
    deadline = time.monotonic() + 5
    while server._connections and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not server._connections
