import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.json_files import parse, read_json, read_json_object

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json") / "value.json"


@given(value=_JSON)
def test_a_value_is_read_as_it_was_written(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
    assert read_json(path, "write it again") == value


@given(content=st.binary(max_size=40))
def test_any_bytes_are_read_or_refused_by_path_and_remedy(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with suppress(ValueError):
        if isinstance(json.loads(content), dict):
            assert read_json_object(path, "write it again") == json.loads(content)
            return
    with pytest.raises(UserError, match=f"(?s)^{re.escape(str(path))}.*write it again"):
        read_json_object(path, "write it again")


@pytest.mark.parametrize("content", ["[" * 100_000, "1" * 10_000, '{"a":', ""])
def test_deep_nesting_long_numbers_and_cut_files_are_refused(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(UserError, match="is not JSON"):
        read_json(path, "write it again")


def test_files_that_are_too_large_are_not_read(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="cannot be read .*write it again"):
        read_json(path, "write it again")


def test_fifos_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", ".", "missing"):
        with pytest.raises(UserError, match="cannot be read"):
            read_json(tmp_path / name, "write it again")


class _Model(BaseModel):
    size: int = Field(gt=0)
    name: str


@dataclass
class _Record:
    size: int


def test_fields_that_do_not_fit_are_named_with_what_they_hold() -> None:
    with pytest.raises(
        UserError, match=r"x.json is not understood \(size: .*greater than 0, not 0; name: .*not a list"
    ):
        parse(_Model, {"size": 0, "name": ["a"] * 100}, "x.json", "write it again")
    with pytest.raises(UserError, match="size: .*not 'abc'"):
        parse(_Record, {"size": "abc"}, "x.json", "write it again")
    assert parse(_Record, {"size": 3}, "x.json", "write it again") == _Record(3)
