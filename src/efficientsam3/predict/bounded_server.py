"""An HTTP server whose threads and patience are limited: clients that say nothing, or a byte a minute, make room."""

import contextlib
import io
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_MOST_CONNECTIONS = 64  # at a time; a browser opens six
_SECONDS_TO_ASK = 20.0  # for a whole request, however it arrives
_SECONDS_TO_TAKE = 30.0  # for each 64 KiB of the answer
_SECONDS_TO_LEAVE = 1.0


class BoundedServer(ThreadingHTTPServer):
    """Serves so many connections at most; one more takes the place of the oldest that has asked for nothing yet."""

    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        """Listen; see `socketserver.TCPServer` for what it raises."""
        self._changed = threading.Condition()
        self._connections: dict[socket.socket, bool] = {}  # in the order of their arrival -> whether it has asked
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, once there is room."""
        with self._changed:
            while len(self._connections) >= _MOST_CONNECTIONS:
                waiting = (connection for connection, asked in self._connections.items() if not asked)
                _shut(next(waiting, next(iter(self._connections))))
                if not self._changed.wait(_SECONDS_TO_LEAVE):
                    return self.shutdown_request(request)
            self._connections[request] = False
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        super().shutdown_request(request)
        with self._changed:
            self._connections.pop(request, None)
            self._changed.notify_all()

    def has_asked(self, request: socket.socket) -> None:
        """Note that a connection's request has arrived."""
        with self._changed:
            if request in self._connections:
                self._connections[request] = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the traceback, unless the client left or its time was up."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class PromptReading(BaseHTTPRequestHandler):
    """Of a handler: the whole request must arrive within a time, the answer be taken at some speed."""

    timeout = _SECONDS_TO_TAKE

    def setup(self) -> None:
        """Read from the connection until the time is up."""
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Until(self.connection, time.monotonic() + _SECONDS_TO_ASK))

    def parse_request(self) -> bool:
        """Read the headers; then the connection waits for us rather than we for it."""
        whole = super().parse_request()
        assert isinstance(self.server, BoundedServer)
        self.server.has_asked(self.request)
        self.connection.settimeout(_SECONDS_TO_TAKE)
        return whole


class _Until(io.RawIOBase):
    """A connection that is read until a moment."""

    def __init__(self, connection: socket.socket, end: float) -> None:
        self._connection, self._end = connection, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request did not arrive in time")
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has just gone by itself
        connection.shutdown(socket.SHUT_RDWR)
