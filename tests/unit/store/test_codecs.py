from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from efficientsam3.config.schema import StoreConfig
from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.request import describe
from efficientsam3.store.advise import candidates
from efficientsam3.store.codecs import CODECS, CodecKind, build_codec, payload_size, pca_components
from efficientsam3.store.encodings import Codec, Float16Codec
from efficientsam3.store.manifest import StoreManifest, write_store_manifest
from efficientsam3.store.projection import fit_projection
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.store.records import pack_records, storable, unpack_seeds
from efficientsam3.store.shards import Shard
from efficientsam3.store.writer import BackgroundWriter

QUANTISED = ["int8", "int4"]
COUNT = 3


def embeddings(dim: int, size: int, seed: int = 0) -> torch.Tensor:
    """Channels of falling variance, mixed, like a teacher's: (3, dim, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    sources = torch.randn(COUNT, dim, size * size, generator=generator) * (0.7 ** torch.arange(dim))[:, None]
    mixing = torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0]
    return (mixing @ sources + 0.3).unflatten(2, (size, size))


def codec_for(name: str, grid: torch.Tensor) -> Codec:
    components = pca_components(name)
    projection = fit_projection([grid], components) if components else None
    return build_codec(name, grid.shape[1], grid.shape[2], projection)


def relative_error(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).norm() / right.norm())


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


@pytest.mark.parametrize("name", ["float16", "int8", "int4", "pca2-int8", "pca2-int4"])
def test_non_contiguous_embeddings_encode_the_same(name: str) -> None:
    tokens = torch.randn(1, 9, 2, generator=torch.Generator().manual_seed(0))
    strided, grid = tokens.transpose(1, 2).unflatten(2, (3, 3)), tokens.transpose(1, 2).reshape(1, 2, 3, 3)
    codec = codec_for(name, grid)
    assert torch.equal(codec.encode(strided), codec.encode(grid.contiguous()))


@given(
    name=st.sampled_from(["float16", "int8", "int4", "pca-int8", "pca-int4"]),
    dim=st.integers(1, 70),
    size=st.integers(1, 5),
    data=st.data(),
)
@settings(deadline=None, max_examples=60)
def test_every_shape_takes_the_stated_bytes_and_comes_back(name: str, dim: int, size: int, data: st.DataObject) -> None:
    name = name.replace("pca", f"pca{data.draw(st.integers(1, dim))}")
    grid = embeddings(dim, size)
    codec = codec_for(name, grid)
    payload = codec.encode(grid)
    assert payload.shape == (COUNT, codec.payload_size)
    assert payload.dtype == torch.uint8
    assert codec.payload_size == payload_size(name, dim, size)
    decoded = codec.decode(payload)
    assert decoded.shape == grid.shape
    assert decoded.dtype == torch.float32
    # A record does not depend on its neighbours in the batch. (Matrix products may round differently.)
    if "pca" not in name:
        assert torch.equal(codec.encode(grid[1:2]), payload[1:2])


values = st.floats(-65504, 65504, width=32)


@given(name=st.sampled_from(QUANTISED), numbers=st.lists(values, min_size=1, max_size=80), cells=st.integers(1, 3))
@settings(deadline=None, max_examples=200)
def test_the_error_is_at_most_half_a_step_of_the_blocks_scale(name: str, numbers: list[float], cells: int) -> None:
    """Examples include constant, zero, tiny and huge cells."""
    grid = torch.tensor(numbers)[None, :, None, None] * torch.arange(1, cells**2 + 1).reshape(cells, cells) / cells**2
    decoded = build_codec(name, len(numbers), cells).decode(build_codec(name, len(numbers), cells).encode(grid))
    limit, block = (127, len(numbers)) if name == "int8" else (7, 32)
    for start in range(0, len(numbers), block):
        part = slice(start, start + block)
        largest = grid[:, part].abs().amax(dim=1, keepdim=True)
        # bfloat16 rounds a scale up by less than 2 ** -6.
        assert bool(((decoded - grid)[:, part].abs() <= largest / limit / 2 * (1 + 2**-6) + 1e-28).all())


@pytest.mark.parametrize("name", [*QUANTISED, "pca4-int8", "pca9-int4"])
@pytest.mark.parametrize("value", [0.0, 1e-30, -3.5, 6e4])
def test_a_constant_grid_comes_back(name: str, value: float) -> None:
    grid = torch.full((1, 12, 2, 2), value)
    decoded = codec_for(name, grid).decode(codec_for(name, grid).encode(grid))
    torch.testing.assert_close(decoded, grid, rtol=1e-2, atol=1e-28)


def test_an_outlier_that_the_projection_has_not_seen_stays_finite_and_near() -> None:
    codec, outlier = codec_for("pca12-int8", embeddings(12, 4)), torch.full((1, 12, 4, 4), 6e4)
    assert relative_error(codec.decode(codec.encode(outlier)), outlier) < 0.2


def test_a_scale_belongs_to_its_cell() -> None:
    """One huge cell must not spoil the others."""
    grid = torch.ones(1, 8, 2, 2)
    grid[..., 0, 0] = 1e4
    for name in QUANTISED:
        decoded = build_codec(name, 8, 2).decode(build_codec(name, 8, 2).encode(grid))
        torch.testing.assert_close(decoded, grid, rtol=1e-2, atol=0)


def test_more_bits_and_more_components_mean_less_error() -> None:
    grid = embeddings(48, 6)

    def error(name: str) -> float:
        return relative_error(codec_for(name, grid).decode(codec_for(name, grid).encode(grid)), grid)

    assert error("float16") < error("int8") < 0.01 < error("int4") < 0.15
    assert error("pca24-int8") < error("pca24-int4") < 0.1
    assert error("pca24-int8") < error("pca12-int8") < error("pca4-int8")


def test_int4_packs_two_channels_a_byte_the_even_one_low() -> None:
    grid = torch.tensor([7.0, -7.0, 0.0])[None, :, None, None]
    codes = build_codec("int4", 3, 1).encode(grid)[0, 2:]  # after one bfloat16 scale
    assert [[byte & 15, byte >> 4] for byte in codes.tolist()] == [[15, 1], [8, 0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 7e4])
def test_embeddings_that_no_codec_can_hold_are_found(bad: float) -> None:
    grid = torch.zeros(3, 2, 2, 2)
    grid[1, 1, 0, 1] = bad
    assert storable(grid).tolist() == [True, False, True]


@pytest.mark.parametrize("name", ["zip", "pca-int8", "pca0-int8", "pca8", "pca8-float16", "INT8", ""])
def test_an_unknown_codec_is_named(name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' is not known"):
        build_codec(name, 1, 1)


def test_more_components_than_channels_are_refused() -> None:
    with pytest.raises(UserError, match=r"pca9 .* the 8 channels"):
        payload_size("pca9-int8", 8, 2)


class RoundedCodec:
    """Whole numbers from -128 to 127."""

    def __init__(self, dim: int, size: int) -> None:
        self._shape = (dim, size, size)
        self.payload_size = dim * size * size

    def encode(self, embedding: torch.Tensor) -> torch.Tensor:
        return embedding.round().clamp(-128, 127).to(torch.int8).flatten(1).view(torch.uint8)

    def decode(self, payload: torch.Tensor) -> torch.Tensor:
        return payload.contiguous().view(torch.int8).reshape(-1, *self._shape).float()


def test_another_codec_is_one_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(CODECS, "rounded", CodecKind("whole numbers", lambda dim, size, *_: RoundedCodec(dim, size)))
    assert StoreConfig(CODEC="rounded").CODEC == "rounded"
    assert "rounded: whole numbers" in describe(CODECS)
    assert "rounded" in candidates(64)
    manifest = StoreManifest(codec="rounded", embed_dim=2, embed_size=2, preprocessing=Preprocessing(image_size=28))
    write_store_manifest(tmp_path, manifest)
    grid = torch.arange(8.0).reshape(1, 2, 2, 2)
    codec = manifest.build_codec(tmp_path)
    with BackgroundWriter(Shard(tmp_path, 0), manifest.record_size) as writer:
        writer.append("sa_1", pack_records(np.array([7], np.int32), codec.encode(grid).numpy())[0])
    store = EmbeddingStore(tmp_path)
    seeds, found = store.decode(store.read(0)[None])
    assert (seeds.tolist(), found.tolist()) == ([7], grid.tolist())


@pytest.mark.parametrize("name", ["float32", "pca0-int8", "pca-int4", "pca8-int2", "int8 "])
def test_an_unknown_codec_is_refused_with_the_names(name: str) -> None:
    with pytest.raises(UserError, match=r"this version has float16, int8, int4, pca\{K\}-int8, pca\{K\}-int4"):
        payload_size(name, 64, 16)
    with pytest.raises(ValidationError, match="is not known"):
        StoreConfig(CODEC=name)
