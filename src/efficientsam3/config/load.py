"""From YAML files, `--opts` and flags to a typed configuration.

Precedence, lowest first: schema default, BASE file, the file itself, --opts, named flag.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from efficientsam3.config.yaml_text import parse_yaml
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import read_bytes, require_file, unreadable
from efficientsam3.runtime.request import shorten

Config = TypeVar("Config", bound=BaseModel)
Tree = dict[str, Any]
_LARGEST = 1 << 20  # bytes of a file
_MOST_FILES = 50  # that one configuration builds on


def load_config(
    schema: type[Config], path: Path, opts: Sequence[str] = (), flags: Mapping[str, Any] | None = None
) -> Config:
    """Read a configuration.

    Args:
        schema: root of the typed configuration.
        path: YAML file; its key BASE may name files, relative to it, whose values it builds on.
        opts: `KEY VALUE` pairs, e.g. `["DATA.BATCH_SIZE", "8"]`; values are read as YAML.
        flags: dotted key -> value; a value of None means that the flag was not given.

    Raises:
        UserError: a file is missing or not YAML, or any key or value is wrong; all of them are named at once.
    """
    tree = read_yaml(path)
    for key, value in parse_opts(opts):
        _set(tree, key, value)
    for key, value in (flags or {}).items():
        if value is not None:
            _set(tree, key, value)
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"Configuration {path}: {'; '.join(_explain(schema, error))}.") from error


def read_yaml(path: Path) -> Tree:
    """Read one YAML file over the files its BASE names.

    Raises:
        UserError: the file, or one that it builds on, is missing, unreadable, no YAML mapping, or its own BASE.
    """
    return _read(path, (), [])


def _read(path: Path, above: tuple[Path, ...], read: list[Path]) -> Tree:
    """Read `path`, which the files `above` build on; `read` collects all files."""
    require_file(path, "Configuration file", "give a YAML file with --cfg, e.g. stage1/configs/es_rv_m.yaml")
    resolved = path.resolve()
    if resolved in above:
        raise UserError(f"Configuration {path} is its own BASE: take the loop out of its BASE lines.")
    read.append(resolved)
    if len(read) > _MOST_FILES:
        raise UserError(
            f"Configuration {read[0]} builds on more than {_MOST_FILES} files, {path} among them: name each once in "
            "its BASE lines."
        )
    try:
        tree = parse_yaml(read_bytes(path, _LARGEST).decode("utf-8")) or {}
    except OSError as error:
        raise unreadable(path, error) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"Configuration {path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(tree, dict):
        raise UserError(f"Configuration {path} holds a {type(tree).__name__}, not KEY: value lines.")
    merged: Tree = {}
    for base in _bases(path, tree.pop("BASE", [])):
        _merge(merged, _read(base, (*above, resolved), read))
    _merge(merged, tree)
    return merged


def _bases(path: Path, value: Any) -> list[Path]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        text = shorten(repr(value))
        raise UserError(f"Configuration {path}: BASE {text} is neither the path of a YAML file nor a list of paths.")
    return [path.parent / name for name in names]


def parse_opts(opts: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Pairs of dotted key and YAML-read value.

    Raises:
        UserError: a key without value, or a value that is not YAML.
    """
    if len(opts) % 2:
        raise UserError(f"--opts takes KEY VALUE pairs, and {opts[-1]!r} has no value.")
    for key, text in zip(opts[::2], opts[1::2], strict=True):
        try:
            yield key, parse_yaml(text)
        except yaml.YAMLError as error:
            reason = getattr(error, "problem", None) or str(error)
            shown = shorten(repr(text))
            raise UserError(f"--opts {key}: {shown} is not a YAML value ({reason}); quote it.") from error


def _set(tree: Tree, key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(
                f"{key}: {parent} is a value here ({shorten(repr(child))}), not a section with keys of its own."
            )
        tree = child
    tree[leaf] = value


def _merge(below: Tree, above: Tree) -> None:
    """Change `below` by what is in `above`, of which it keeps copies: an alias repeats one section under two names."""
    for key, value in above.items():
        if isinstance(value, dict):
            section = below.get(key)
            below[key] = section if isinstance(section, dict) else {}
            _merge(below[key], value)
        else:
            below[key] = value


def _explain(schema: type[BaseModel], error: ValidationError) -> list[str]:
    known = list(_keys(schema))
    problems: dict[str, list[str]] = {}
    for item in error.errors():
        if item["type"] == "extra_forbidden":
            key = ".".join(str(part) for part in item["loc"])
            close = difflib.get_close_matches(key, known, n=1)
            message = (
                f"not a key, did you mean {close[0]}" if close else f"not a key of this command ({', '.join(known)})"
            )
        else:
            # A union's alternatives are named in the location after the key; keys alone are upper case.
            key = ".".join(str(part) for part in item["loc"] if str(part).isupper())
            message = item["msg"].removeprefix("Value error, ").replace("Input should", "should")
            if item["type"] not in ("missing", "value_error"):
                message = f"{shorten(repr(item['input']))}: {message}"
        problems.setdefault(shorten(key), []).append(message)
    return [f"{key} {' or '.join(messages)}".strip() for key, messages in problems.items()]


def _keys(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in schema.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from _keys(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
