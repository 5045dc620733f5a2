import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientsam3.store.index import StoreIndex, parse_keys
from efficientsam3.store.shards import Shard

# An id is a file name's text without a newline; NUL cannot stand in one.
names = st.text(st.characters(exclude_characters="\n\0", codec="utf-8"), min_size=1, max_size=24).map(str.encode)


@given(st.lists(names), st.binary(max_size=3).filter(lambda torn: b"\n" not in torn))
def test_keys_are_the_whole_lines(keys: list[bytes], torn: bytes) -> None:
    content = b"".join(key + b"\n" for key in keys) + torn
    assert parse_keys(content).tolist() == keys


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(names, max_size=8), min_size=1, max_size=3), st.lists(names, max_size=4))
def test_rows_lead_to_the_first_record_of_every_id(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[bytes]], others: list[bytes]
) -> None:
    directory = tmp_path_factory.mktemp("index")
    expected: dict[bytes, tuple[int, int]] = {}
    for rank, keys in enumerate(shards):
        (directory / f"rank{rank}-keys.txt").write_bytes(b"".join(key + b"\n" for key in keys))
        (directory / f"rank{rank}-values.bin").write_bytes(b"x" * len(keys))
        for position, key in enumerate(keys):
            expected.setdefault(key, (rank, position))
    index = StoreIndex([Shard(directory, rank) for rank in range(len(shards))], 1)
    assert index.ids.tolist() == sorted(expected)
    asked = [*expected, *others]
    rows = index.rows(np.array(asked, dtype=np.bytes_))
    for key, row in zip(asked, rows.tolist(), strict=True):
        assert (index.place(row) if row >= 0 else None) == expected.get(key)
    order = index.in_file_order(np.arange(len(index)))
    assert [index.place(row) for row in order.tolist()] == sorted(index.place(row) for row in range(len(index)))
