"""Re-encode a store with another codec, resumably."""

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from efficientsam3.runtime.errors import UserError
from efficientsam3.store.codecs import pca_components
from efficientsam3.store.manifest import (
    ProjectionIdentity,
    StoreManifest,
    open_manifest,
    read_store_manifest,
    write_store_manifest,
)
from efficientsam3.store.projection import PROJECTION_IMAGES, fit_projection, save_projection
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.store.records import pack_records, storable
from efficientsam3.store.shards import Shard, find_shards
from efficientsam3.store.statistics import ShardStatistics, gathered_statistics
from efficientsam3.store.writer import BackgroundWriter

_BATCH = 8


def convert_store(
    source: Path,
    output: Path,
    codec: str,
    device: torch.device,
    advance: Callable[[int], object] = lambda count: None,
) -> int:
    """Write the records of `source` that `output` lacks, in the order of the files, with another codec.

    Args:
        source: a store, only read.
        output: a new store, or one left by an interrupted conversion.
        codec: the codec of `output`. A pca{K} codec's projection is fitted on the first images of `source`.
        device: where to decode and encode.
        advance: called with the number of records just written.

    Returns:
        How many records were written.

    Raises:
        UserError: both are the same store, `output` has other settings, a record is damaged, or the disk is
            full.
    """
    if source.resolve() == output.resolve():
        raise UserError(f"{output} is the store to convert: give another folder to write to.")
    open_manifest(source)
    store = EmbeddingStore(source)
    manifest = _manifest(store, output, codec, device)
    write_store_manifest(output, manifest)
    target, encoder = EmbeddingStore(output), manifest.build_codec(output)
    rows = np.flatnonzero(target.rows(store.ids) < 0)
    rows = rows[store.index.in_file_order(rows)]
    with BackgroundWriter(Shard(output, 0), manifest.record_size) as writer:
        for batch in _batches(rows):
            seeds, embeddings = _read(store, batch, device)
            payloads = encoder.encode(embeddings).cpu().numpy()
            records = pack_records(seeds.cpu().numpy(), payloads)
            for row, record in zip(batch, records, strict=True):
                writer.append(os.fsdecode(store.ids[row]), record, image=store.read_image_stamp(int(row)))
            advance(len(batch))
    _hand_on_statistics(source, output, manifest.embed_dim)
    return len(rows)


def _hand_on_statistics(source: Path, output: Path, embed_dim: int) -> None:
    """Copy the statistics if both stores have the same images: they differ only by the codecs' rounding."""
    total, target = gathered_statistics(source), Shard(output, 0)
    keys = target.read_keys()
    if total is not None and len(keys) == sum(len(shard.read_keys()) for shard in find_shards(source)):
        statistics = ShardStatistics(target, embed_dim)
        statistics.add(keys, total)
        statistics.write()


def _manifest(store: EmbeddingStore, output: Path, codec: str, device: torch.device) -> StoreManifest:
    manifest = store.manifest.model_copy(update={"codec": codec, "projection": None})
    assert manifest.record_size > 0  # refuses an unknown codec before anything is written
    components, present = pca_components(codec), read_store_manifest(output)
    if components is None or present is not None:
        return manifest.model_copy(update={"projection": present.projection if present else None})
    rows = np.arange(len(store))
    rows = rows[store.index.in_file_order(rows)][:PROJECTION_IMAGES]
    projection = fit_projection((_read(store, batch, device)[1] for batch in _batches(rows)), components)
    identity = ProjectionIdentity(
        sha256=save_projection(output, projection), variance_kept=projection.variance_kept, images=len(rows)
    )
    return manifest.model_copy(update={"projection": identity})


def _read(
    store: EmbeddingStore, rows: npt.NDArray[np.int64], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    records = torch.stack([store.read(int(row)) for row in rows])
    seeds, embeddings = store.decode(records.to(device))
    for row, whole in zip(rows, storable(embeddings).tolist(), strict=True):
        if not whole:
            raise UserError(
                f"The embedding of image {os.fsdecode(store.ids[row])!r} in {store.directory} is not finite: no codec "
                "can hold it, embed that image again."
            )
    return seeds, embeddings


def _batches(rows: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    iterator = iter(rows.tolist())
    while batch := list(islice(iterator, _BATCH)):
        yield np.array(batch)
