"""From YAML files, `--opts` and flags to a typed configuration.

Precedence, lowest first: schema default, BASE file, the file itself, --opts, named flag.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import require_file

Config = TypeVar("Config", bound=BaseModel)
Tree = dict[str, Any]


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


def read_yaml(path: Path, seen: tuple[Path, ...] = ()) -> Tree:
    """Read one YAML file over the files its BASE names.

    Raises:
        UserError: the file is missing, is not a YAML mapping, or is its own BASE.
    """
    require_file(path, "Configuration file", "give a YAML file with --cfg, e.g. stage1/configs/es_rv_m.yaml")
    resolved = path.resolve()
    if resolved in seen:
        raise UserError(f"Configuration {path} is its own BASE: take the loop out of its BASE lines.")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"Configuration {path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(tree, dict):
        raise UserError(f"Configuration {path} holds a {type(tree).__name__}, not KEY: value lines.")
    bases = tree.pop("BASE", [])
    merged: Tree = {}
    for base in [bases] if isinstance(bases, str) else bases:
        _merge(merged, read_yaml(path.parent / base, (*seen, resolved)))
    _merge(merged, tree)
    return merged


def parse_opts(opts: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Pairs of dotted key and YAML-read value.

    Raises:
        UserError: a key without value, or a value that is not YAML.
    """
    if len(opts) % 2:
        raise UserError(f"--opts takes KEY VALUE pairs, and {opts[-1]!r} has no value.")
    for key, text in zip(opts[::2], opts[1::2], strict=True):
        try:
            yield key, yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"--opts {key}: {text!r} is not a YAML value; quote it.") from error


def _set(tree: Tree, key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"{key}: {parent} is a value here ({child!r}), not a section with keys of its own.")
        tree = child
    tree[leaf] = value


def _merge(below: Tree, above: Tree) -> None:
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
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
                message = f"{item['input']!r}: {message}"
        problems.setdefault(key, []).append(message)
    return [f"{key} {' or '.join(messages)}".strip() for key, messages in problems.items()]


def _keys(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in schema.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from _keys(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
