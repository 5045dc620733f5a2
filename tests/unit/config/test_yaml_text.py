"""Small texts that would nest or expand without end are refused; everything else is read as PyYAML reads it."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from efficientsam3.config.yaml_text import parse_yaml

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@given(VALUES)
def test_what_yaml_writes_is_read_back(value: object) -> None:
    assert parse_yaml(yaml.safe_dump(value)) == value


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_yaml(text)
    except yaml.YAMLError:
        return


def laughs(levels: int) -> str:
    lines = ["a0: &a0 [" + ", ".join(["lol"] * 9) + "]"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 9) + "]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (laughs(9), "more than 10000 values"),
        ("[" * 30, "within each other"),
        ("[" * 100_000, "within each other"),
        ("- " * 50 + "x", "within each other"),
        ("a: &a [*a]", "part of what it repeats"),
        ("a: *b", "undefined alias"),
        ("DATA: {A: 1}\nDATA: {B: 2}", "DATA stands here twice"),
        ("x: 0b_", "0b_ cannot be read as int"),
        ("9" * 5000, "cannot be read as int"),
        ("!!timestamp 2024-13-45", "cannot be read as timestamp"),
        ("!!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("[" + "1," * 20_000 + "]", "more than 10000 values"),
    ],
)
def test_what_has_no_end_is_refused(text: str, problem: str) -> None:
    with pytest.raises(yaml.YAMLError, match=problem):
        parse_yaml(text)


def test_aliases_are_read_and_dates_are_text() -> None:
    assert parse_yaml("a: &x {k: 1}\nb: *x\nc: {<<: *x, l: 2}") == {"a": {"k": 1}, "b": {"k": 1}, "c": {"k": 1, "l": 2}}
    assert parse_yaml(laughs(3))["a2"][0][0][0] == "lol"
    assert parse_yaml("2024-13-45") == "2024-13-45"
    assert parse_yaml("[2024-11-28, 0x1F, 1_000, .5, on]") == ["2024-11-28", 31, 1000, 0.5, True]
