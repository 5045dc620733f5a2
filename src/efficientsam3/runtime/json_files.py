"""JSON from users' disks: whatever is wrong with it ends in one sentence."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import read_bytes

Kind = TypeVar("Kind")
LIMIT = 1 << 26  # bytes


def read_json(path: Path, remedy: str, limit: int = LIMIT) -> Any:
    """Read a JSON file, in UTF-8.

    Args:
        path: a regular file; a FIFO or a device is refused.
        remedy: ends the error's sentence, such as "download the directory again".
        limit: largest size in bytes.

    Raises:
        UserError: the file is missing, unreadable, larger than `limit`, or not JSON.
    """
    try:
        return json.loads(read_bytes(path, limit).decode("utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {remedy}.") from error
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{path} is not JSON ({reason}): {remedy}.") from error


def read_json_object(path: Path, remedy: str, limit: int = LIMIT) -> dict[str, Any]:
    """Read a JSON file that holds an object; see `read_json`.

    Raises:
        UserError: as `read_json`, or the file holds something else than an object.
    """
    content = read_json(path, remedy, limit)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {_article(type(content).__name__)}, not a JSON object: {remedy}.")
    return content


def parse(kind: type[Kind], value: Any, where: str, remedy: str) -> Kind:
    """Check a value from a user's disk by pydantic.

    Args:
        kind: a pydantic model, a dataclass, or any type that pydantic knows.
        value: what was read.
        where: what the value is, which begins the error's sentence, such as "architecture in model.pt.json".
        remedy: ends it.

    Raises:
        UserError: the value does not fit; every field that is wrong is named with what it holds.
    """
    if isinstance(value, kind):
        return value
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise UserError(f"{where} is not understood ({_problems(error)}): {remedy}.") from error


def _problems(error: ValidationError, most: int = 3) -> str:
    found = error.errors(include_url=False)
    told = [_key(each["loc"]) + _wrong(each) for each in found[:most]]
    return "; ".join(told) + (f"; and {len(found) - most} more" if len(found) > most else "")


def _wrong(problem: ErrorDetails) -> str:
    if problem["type"] in ("missing", "value_error"):  # what was given is an object around the problem
        return problem["msg"].removeprefix("Value error, ")
    return f"{problem['msg']}, not {_short(problem['input'])}"


def _key(location: tuple[int | str, ...]) -> str:
    return ".".join(map(str, location)) + ": " if location else ""


def _short(value: Any, most: int = 60) -> str:
    text = f"{_article(type(value).__name__)}" if isinstance(value, Mapping | list | tuple) else repr(value)
    return text if len(text) <= most else text[:most] + "…"


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
