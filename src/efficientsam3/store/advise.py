"""Measuring which codec suits a store's own embeddings: bytes, error and cosine of each."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cosine_similarity

from efficientsam3.runtime.errors import UserError
from efficientsam3.store.codecs import CODECS, build_codec, payload_size, pca_components
from efficientsam3.store.projection import Projection, fit_projection
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.store.records import SEED_BYTES

LEAST_COSINE = 0.995


@dataclass(frozen=True)
class CodecMeasure:
    """Measurements of one codec on some embeddings."""

    codec: str
    record_size: int  # bytes
    ratio: float  # size of float16's record over this one's
    relative_error: float  # mean over images of |decoded - embedding| / |embedding|
    cosine: float  # mean over images and cells
    encode_rate: float  # images/s
    decode_rate: float  # images/s


def candidates(embed_dim: int) -> tuple[str, ...]:
    """Codecs worth trying for that many channels."""
    counts = sorted({max(1, embed_dim * part // 32) for part in (8, 10, 12, 13, 14, 16, 20)})
    numbers = {name: counts if "{K}" in name else [0] for name in CODECS}
    return tuple(name.replace("{K}", str(count)) for name, of_name in numbers.items() for count in of_name)


def measure_codecs(directory: Path, count: int = 64, codecs: tuple[str, ...] = ()) -> list[CodecMeasure]:
    """Encode and decode a store's first embeddings, in the order of its files.

    Projections are fitted on the first half and everything is measured on the second, which they have not seen.

    Args:
        directory: a store, preferably of codec float16.
        count: how many embeddings to use.
        codecs: names; by default those of `candidates`.

    Raises:
        UserError: the store has fewer than 2 records.
    """
    store = EmbeddingStore(directory)
    if len(store) < 2 or count < 2:
        raise UserError(f"{directory} has {len(store)} records: embed at least 2 images to compare.")
    rows = np.arange(len(store))
    rows = rows[store.index.in_file_order(rows)][:count]
    half = len(rows) // 2
    names = codecs or candidates(store.manifest.embed_dim)
    most = max((pca_components(name) or 0 for name in names), default=0)
    projection = fit_projection((_embedding(store, row) for row in rows[:half]), most) if most else None
    return [_measure(store, name, rows[half:].tolist(), projection) for name in names]


def recommend(measures: list[CodecMeasure], least_cosine: float = LEAST_COSINE) -> CodecMeasure:
    """The smallest codec whose cosine is at least `least_cosine`.

    Raises:
        UserError: no codec keeps that cosine.
    """
    good = [measure for measure in measures if measure.cosine >= least_cosine]
    if not good:
        raise UserError(f"No codec here keeps a cosine of {least_cosine:g}: ask for less.")
    return min(good, key=lambda measure: measure.record_size)


def _measure(store: EmbeddingStore, name: str, rows: list[int], widest: Projection | None) -> CodecMeasure:
    dim, size = store.manifest.embed_dim, store.manifest.embed_size
    components, projection = pca_components(name), None
    if components and widest:
        projection = Projection(
            widest.mean, widest.basis[:components], widest.deviation[:components], widest.variance_kept
        )
    codec = build_codec(name, dim, size, projection)
    errors = []
    cosines = []
    encoding = 0.0
    decoding = 0.0
    for row in rows:
        embedding, start = _embedding(store, row), time.perf_counter()
        payload, middle = codec.encode(embedding), time.perf_counter()
        decoded, end = codec.decode(payload), time.perf_counter()
        encoding, decoding = encoding + middle - start, decoding + end - middle
        errors.append(float((decoded - embedding).norm() / embedding.norm()))
        cosines.append(float(cosine_similarity(decoded, embedding, dim=1).mean()))
    record_size = SEED_BYTES + codec.payload_size
    ratio = (SEED_BYTES + payload_size("float16", dim, size)) / record_size
    rates = (len(rows) / encoding, len(rows) / decoding)
    return CodecMeasure(name, record_size, ratio, float(np.mean(errors)), float(np.mean(cosines)), *rates)


def _embedding(store: EmbeddingStore, row: int) -> torch.Tensor:
    return store.decode(store.read(int(row))[None])[1]
