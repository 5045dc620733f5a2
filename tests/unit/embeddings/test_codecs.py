import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from efficientsam3.embeddings.codecs import Float16Codec, build_codec, pack_records, unpack_seeds
from efficientsam3.runtime.errors import UserError


def test_float16_is_the_published_layout() -> None:
    grid = torch.randn(2, 3, 4, 4)
    records = pack_records(np.array([7, -1], np.int32), build_codec("float16", 3, 4).encode(grid).numpy())
    assert records.shape == (2, 4 + 2 * 3 * 4 * 4)
    for record, values, seed in zip(records, grid, (7, -1), strict=True):
        assert np.frombuffer(record[:4], "<i4")[0] == seed
        np.testing.assert_array_equal(np.frombuffer(record[4:], "<f2").reshape(3, 4, 4), values.half().numpy())


def test_the_published_record_size() -> None:
    assert 4 + Float16Codec(1024, 72).payload_size == 10_616_836


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=5))
def test_seeds_and_values_come_back(seeds: list[int]) -> None:
    codec = Float16Codec(2, 3)
    grid = torch.linspace(-100, 100, len(seeds) * 18).reshape(len(seeds), 2, 3, 3)
    records = torch.from_numpy(pack_records(np.array(seeds, np.int32), codec.encode(grid).numpy()))
    assert unpack_seeds(records).tolist() == seeds
    assert torch.equal(codec.decode(records[:, 4:]), grid.half().float())


def test_non_contiguous_embeddings_encode_the_same() -> None:
    codec = Float16Codec(2, 3)
    tokens = torch.randn(1, 9, 2)
    grid = tokens.transpose(1, 2).reshape(1, 2, 3, 3)
    assert torch.equal(codec.encode(tokens.transpose(1, 2).unflatten(2, (3, 3))), codec.encode(grid.contiguous()))


def test_an_unknown_codec_is_named() -> None:
    with pytest.raises(UserError, match="'zip' is not known"):
        build_codec("zip", 1, 1)
