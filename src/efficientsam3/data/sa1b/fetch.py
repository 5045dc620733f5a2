"""Downloading one file: resumed by range, retried, and renamed only once whole."""

import http.client
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from threading import Event

from efficientsam3.data.sa1b.links import SOURCE
from efficientsam3.data.sa1b.tars import read_members
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import fsync_directory

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60
_LONGEST_WAIT_SECONDS = 60.0
_EXPIRED = {401, 403, 410}
_WORTH_A_RETRY = {408, 425, 429}  # and all from 500
_LENGTH = re.compile(r"[0-9]{1,15}")  # up to a petabyte
_CONTENT_RANGE = re.compile(rf"bytes (?:({_LENGTH.pattern})-{_LENGTH.pattern}|\*)/({_LENGTH.pattern})")


class DownloadError(UserError):
    """A file could not be downloaded, and another attempt now would not help."""


class CancelledError(Exception):
    """Another thread has asked for the end."""


class _Interrupted(Exception):
    """An attempt failed, and another one may succeed."""


_WORTH_ANOTHER_ATTEMPT = (
    _Interrupted,
    urllib.error.URLError,
    http.client.HTTPException,
    TimeoutError,
    ConnectionError,
    ssl.SSLError,
)


@dataclass(frozen=True)
class Retries:
    """How patient to be with a server."""

    attempts: int = 8  # in a row without any new byte
    first_wait: float = 1.0  # seconds, doubled each time


def fetch_tar(
    name: str, link: str, folder: Path, retries: Retries, advance: Callable[[float], None], stop: Event
) -> None:
    """Download a tar to `folder/name`; until whole it is `folder/name.part`, which a later call continues.

    Whole means that it has the length that the server announced, and is a tar from its first header to its end.

    Args:
        name: the file's name.
        link: http(s).
        folder: where the tar goes; must exist.
        retries: attempts and waits.
        advance: called with the share of the file just received, in [0, 1].
        stop: once set, there is no further attempt.

    Raises:
        CancelledError: `stop` was set.
        DownloadError: the link has expired or does not exist, or the server keeps failing.
        UserError: the file cannot be written.
    """
    part = folder / f"{name}.part"
    failures, best = 0, _size(part)
    while True:
        try:
            _attempt(link, part, advance)
            _check_tar(part)
            _finish(part, folder / name)
            return
        except _WORTH_ANOTHER_ATTEMPT as error:
            failures = 1 if _size(part) > best else failures + 1
            best = max(best, _size(part))
            if failures >= retries.attempts:
                raise DownloadError(f"{name}: {_plain(error)}, {failures} times in a row: try again later.") from error
            if stop.wait(min(retries.first_wait * 2 ** (failures - 1), _LONGEST_WAIT_SECONDS)):
                raise CancelledError from error
        except OSError as error:
            raise UserError(
                f"Cannot write {part}: {error.strerror}; fix that and run the same command again."
            ) from error


def _finish(part: Path, path: Path) -> None:
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
    fsync_directory(path.parent)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _attempt(link: str, part: Path, advance: Callable[[float], None]) -> None:
    """Fetch what is missing of `part`."""
    start = _size(part)
    request = urllib.request.Request(link, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        return _handle_status(error, part, start)
    except ValueError as error:  # of a redirection; `read_links` has checked the link
        raise DownloadError(
            f"{part.stem}: the server leads to a link that cannot be used ({_plain(error)})."
        ) from error
    with response:
        first, total = _extent(response.status, response.headers)
        if first not in (0, start):
            raise _Interrupted(f"the server answered with bytes from {first} when asked for {start} on")
        with part.open("rb+" if part.exists() else "wb") as file:
            file.truncate(first)  # to 0 where the server ignores ranges
            file.seek(first)
            while chunk := response.read1(_CHUNK):  # what has come, however little, so that `advance` can end it
                file.write(chunk)
                advance(len(chunk) / total if total else 0.0)
    if total is not None and _size(part) != total:
        too_long = _size(part) > total
        if too_long:
            part.unlink()
        raise _Interrupted(f"the server sent {'more' if too_long else 'less'} than the {total} bytes it promised")


def _handle_status(error: urllib.error.HTTPError, part: Path, start: int) -> None:
    if error.code in _EXPIRED:
        raise DownloadError(
            f"{part.stem}: the link has expired ({error.code}): Meta's links expire after weeks, get a new file from "
            f"{SOURCE} and run the same command with it to continue."
        ) from error
    if error.code == 416:  # nothing there from `start` on
        match = _CONTENT_RANGE.fullmatch(error.headers.get("Content-Range", ""))
        if match and int(match[2]) == start:
            return
        part.unlink()
        raise _Interrupted("the part downloaded before does not belong to this file") from error
    if error.code in _WORTH_A_RETRY or error.code >= 500:
        raise _Interrupted(f"the server answered {error.code}") from error
    raise DownloadError(
        f"{part.stem}: the server answered {error.code} ({_plain(error.reason)}): check its link."
    ) from error


def _extent(status: int, headers: Message) -> tuple[int, int | None]:
    """(first byte that is sent, size of the whole file if known)."""
    if status == 206:
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        if not match or match[1] is None:
            raise _Interrupted(f"the server sent a part with the range {_plain(headers.get('Content-Range'), 30)}")
        return int(match[1]), int(match[2])
    length = headers.get("Content-Length")
    if length is None:
        return 0, None
    if not _LENGTH.fullmatch(length):
        raise _Interrupted(f"the server announced a length of {_plain(length, 30)} bytes")
    return 0, int(length)


def _plain(text: object, most: int = 200) -> str:
    """What a server says, for a sentence on a terminal."""
    words = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())
    return words if len(words) <= most else f"{words[:most]}... of {len(words)} characters"


def _check_tar(part: Path) -> None:
    """Check the content: a length may be wrong, and an error page has one too."""
    problems: list[str] = []
    for _ in read_members(part, lambda name, reason: problems.append(reason) if not name else None):
        pass
    if problems:
        part.unlink()
        raise _Interrupted(f"what the server sent is not a whole tar, {problems[0]}")
