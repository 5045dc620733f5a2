"""Serving an ONNX directory's browser page from disk: an explicit map of files, and no other host."""

import contextlib
import ipaddress
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from efficientsam3.data.find import IMAGE_SUFFIXES
from efficientsam3.export.onnx.manifest import MANIFEST, read_onnx_manifest
from efficientsam3.predict.bounded_server import BoundedServer, PromptReading
from efficientsam3.predict.request import ONNXRUNTIME_WEB
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import open_regular, unreadable
from efficientsam3.sam3.holes import MAX_HOLE_AREA

logger = logging.getLogger(__name__)
Site = Mapping[str, Path | bytes]  # the path of a URL, unquoted -> a file, or its content

_PAGE = Path(__file__).parent / "page"
_RUNTIME_ENTRY = "ort.wasm.min.mjs"
_RUNTIME_FILES = (_RUNTIME_ENTRY, "ort.webgpu.min.mjs", "ort-wasm-*.mjs", "ort-wasm-*.wasm")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
}
_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    # Cross-origin isolation, without which browsers give WebAssembly no threads.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def build_site(
    directory: Path,
    onnxruntime_web: Path = ONNXRUNTIME_WEB,
    images: Path | None = None,
    max_hole_area: int = MAX_HOLE_AREA,
) -> Site:
    """Everything that is served: the page, the graphs that `model.json` names, onnxruntime-web, and images.

    Args:
        directory: what `export-onnx` wrote.
        onnxruntime_web: the `dist` folder of the npm package.
        images: a folder whose images the page offers.
        max_hole_area: see `Promptable.segment`; the page can change it.

    Raises:
        UserError: a file or folder is missing or not what it should be.
    """
    site: dict[str, Path | bytes] = {f"/{path.name}": path for path in _PAGE.iterdir() if path.suffix in _TYPES}
    site["/"] = site.pop("/index.html")
    site |= {f"/model/{name}": directory / name for name in _model_files(directory)}
    if not (onnxruntime_web / _RUNTIME_ENTRY).is_file():
        raise UserError(
            f"{onnxruntime_web} has no {_RUNTIME_ENTRY}: run npm install onnxruntime-web here, or give its dist folder "
            "as --onnxruntime-web."
        )
    runtime = [path for pattern in _RUNTIME_FILES for path in onnxruntime_web.glob(pattern)]
    site |= {f"/onnxruntime-web/{path.name}": path for path in runtime}
    shown = [] if images is None else _images(images)
    site |= {f"/images/{path.name}": path for path in shown}
    site["/images.json"] = json.dumps([path.name for path in shown]).encode()
    site["/settings.json"] = json.dumps({"max_hole_area": max_hole_area}).encode()
    return site


def _model_files(directory: Path) -> Iterator[str]:
    manifest = read_onnx_manifest(directory)
    names = [graph.file for graph in (*manifest.graphs.values(), *manifest.variants.values())]
    names += [] if manifest.tokenizer is None else [manifest.tokenizer.file]
    for name in names:
        if not (directory / name).is_file():
            raise UserError(f"{directory / name} is missing: export the model again.")
    yield from (MANIFEST, *names)


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of images: give another as --images.")
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    except OSError as error:
        raise unreadable(folder, error) from error


def open_server(site: Site, host: str, port: int) -> ThreadingHTTPServer:
    """A listening server; `serve_forever` answers. Port 0 takes a free one, see `server_port`.

    Raises:
        UserError: the address cannot be listened on.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port} is not a port: give a number from 0 (any free one) to 65535.")
    if not host:
        raise UserError("--host is empty: give 127.0.0.1, or 0.0.0.0 to let other machines in.")
    handler = type("SiteHandler", (_Handler,), {"site": site, "local_only": _is_loopback(host)})
    try:
        return BoundedServer((host, port), handler)
    except (OSError, TypeError, ValueError) as error:  # TypeError and ValueError: it cannot be a host's name
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{host}:{port} cannot be listened on ({reason}): give another --port or --host.") from error


def serve_forever(server: ThreadingHTTPServer) -> None:
    """Answer until Ctrl-C."""
    with server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


class _Handler(PromptReading):
    """Answers requests for the site's files and nothing else."""

    site: Site
    local_only: bool

    def do_GET(self) -> None:
        """Send a file."""
        with contextlib.suppress(ConnectionError, TimeoutError):  # the browser went away
            self._answer(send_content=True)

    def do_HEAD(self) -> None:
        """Send a file's headers."""
        with contextlib.suppress(ConnectionError, TimeoutError):
            self._answer(send_content=False)

    def _answer(self, send_content: bool) -> None:
        # A foreign page can resolve its own host name to 127.0.0.1; then that name is in this header.
        if self.local_only and not _is_loopback(self.headers.get("Host", "").rsplit(":", 1)[0]):
            return self.send_error(HTTPStatus.FORBIDDEN)
        path = unquote(self.path.partition("?")[0])
        found = self.site.get(path)
        if found is None:
            return self.send_error(HTTPStatus.NOT_FOUND)
        try:
            content, length = _open(found)
        except OSError:
            return self.send_error(HTTPStatus.NOT_FOUND)
        with content:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", _TYPES[".html" if path == "/" else Path(path).suffix.lower()])
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if send_content:
                shutil.copyfileobj(content, self.wfile)

    def end_headers(self) -> None:
        """Every answer has the page's policy, errors too."""
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        logger.debug(format, *args)


def _open(found: Path | bytes) -> tuple[BinaryIO, int]:
    if isinstance(found, bytes):
        return BytesIO(found), len(found)
    file = open_regular(found)
    return file, os.fstat(file.fileno()).st_size


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
