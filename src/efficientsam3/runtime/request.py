"""Typed requests: what a command is asked to do, each field described once.

A request is checked when it is made. `commands.arguments` turns its fields into flags, with their descriptions as help.
Modules that define requests import no PyTorch, so that `--help` answers at once.
"""

import errno
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError, field_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from efficientsam3.runtime.errors import UserError

AnyRequest = TypeVar("AnyRequest", bound="Request")
AnyPath = TypeVar("AnyPath", str, Path)


class Request(BaseModel):
    """Base of all requests: immutable; unknown fields, NaN and infinities are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _has_possible_paths(cls, value: Any) -> Any:
        return check_paths(value)


def check_paths(value: Any) -> Any:
    """Return a value that may be a path, or hold paths; used to validate fields.

    Raises:
        ValueError: one is not a path of this system: it has a part that is too long, or a NUL.
    """
    for path in value if isinstance(value, list | tuple) else (value,):
        if isinstance(path, Path):
            check_path(path)
    return value


def check_path(path: AnyPath) -> AnyPath:
    """Return a path, which need not exist.

    Raises:
        ValueError: it has a part that is too long for this system, a NUL, or links in a circle.
    """
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise ValueError(f"is not a possible path ({error.strerror})") from error
    except ValueError as error:  # a NUL, or a lone surrogate
        raise ValueError(f"is not a possible path ({error})") from error
    return path


@dataclass(frozen=True)
class Argument:
    """How a field is written on the command line, beyond what its name and type say; `Annotated` metadata."""

    metavar: str | tuple[str, ...] | None = None
    positional: bool = False
    # How a list is given: `store`: several values after one flag; `append`: one value for each flag; `extend`: both;
    # `split`: one text, which the request splits.
    action: Literal["store", "append", "extend", "split"] = "store"
    const: Any = None  # the value when the flag is given without one
    aliases: tuple[str, ...] = ()  # former flags, which still work but are hidden from the help
    flags: Mapping[str, str] | None = None  # one flag per choice, with its help, instead of one flag with choices


@dataclass(frozen=True, eq=False)  # hashed by identity, since a table cannot be hashed
class OneOf:
    """`Annotated` metadata of a string that names an entry of a table, including entries added later."""

    table: Mapping[str, Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check after the text itself; see pydantic's custom types."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: str) -> str:
        if value not in self.table:
            raise PydanticCustomError("one_of", "should be one of {names}", {"names": ", ".join(self.table)})
        return value


def describe(table: Mapping[str, Any]) -> str:
    """All entries of a table with their descriptions, for help texts; a description may be an entry's attribute."""
    return "; ".join(f"{name}: {getattr(entry, 'description', entry)}" for name, entry in table.items())


Folder = Annotated[Path, Argument("DIR")]
File = Annotated[Path, Argument("FILE")]
FileOrFolder = Annotated[Path, Argument("PATH")]
Count = Annotated[int, Field(ge=1, lt=2**31), Argument("N")]
CountOrZero = Annotated[int, Field(ge=0, lt=2**31), Argument("N")]
Overwrite = Annotated[bool, Field(description="replace files that efficientsam3 did not write, or that changed since")]


def make_request(request: type[AnyRequest], values: Mapping[str, Any]) -> AnyRequest:
    """Make a request from the values of its fields.

    Raises:
        UserError: values are missing or wrong; the message names all of them by their flags.
    """
    try:
        return request.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{'; '.join(_explain(request, error))}.") from error


def shorten(text: str, longest: int = 200) -> str:
    """A user's value for a message, which it may not fill."""
    return text if len(text) <= longest else f"{text[:longest]}..."


def flag_name(field: str) -> str:
    """The flag for a field: `batch_size` becomes `--batch-size`."""
    return f"--{field.replace('_', '-')}"


def _explain(request: type[Request], error: ValidationError) -> Iterable[str]:
    problems: dict[str, list[str]] = {}
    for item in error.errors():
        name = str(item["loc"][0]) if item["loc"] else ""
        message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if not name:
            problems.setdefault(message, [])
            continue
        flag = flag_name(name) if name in request.model_fields else name
        value = item["input"] if item["type"] != "missing" else ""
        problems.setdefault(f"{flag} {shorten(str(value))}".strip(), []).append(message)
    return (": ".join(filter(None, (what, " or ".join(messages)))) for what, messages in problems.items())
