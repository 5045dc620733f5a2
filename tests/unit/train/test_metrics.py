import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientsam3.runtime.errors import UserError
from efficientsam3.train.metrics import read_metrics

finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.dictionaries(st.text(), finite).map(lambda record: {"epoch": 0, **record}), min_size=1))
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, float]]) -> None:
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read_metrics(path) == records


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b'{"epoch": 0}\n{"epoch": 1, "train/lo', "line 2 is not JSON"),
        (b"[0]\n", "line 1 is not an epoch's metrics"),
        (b'{"step": 3}\n', "line 1 is not an epoch's metrics"),
        (b'{"epoch": "zero"}\n', "values that are not numbers"),
        (b'{"epoch": NaN}\n', "line 1 is not an epoch's metrics"),
        (b'{"epoch": 0}\n{"epoch": 1.5}\n', "line 2 is not an epoch's metrics"),
        (b"[" * 100000, "line 1 is not JSON"),
        (b"\xff\xfe", "line 1 is not JSON"),
    ],
)
def test_broken_file_is_named(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read_metrics(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be read"):
        read_metrics(tmp_path / "metrics.jsonl")
