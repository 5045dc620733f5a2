"""Computing the statistics of records that are already in the store."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from efficientsam3.data.images import UNKNOWN_IMAGE, ImageStamp, read_size, stamp_image
from efficientsam3.data.listing import ImageListing
from efficientsam3.data.preprocess import Preprocessing, build_valid_mask
from efficientsam3.runtime.errors import UserError
from efficientsam3.store.binding import read_bound_lines
from efficientsam3.store.encodings import Codec
from efficientsam3.store.manifest import MANIFEST_NAME, StoreManifest, read_store_manifest
from efficientsam3.store.records import SEED_BYTES
from efficientsam3.store.scan import read_records
from efficientsam3.store.shards import Shard, find_shards
from efficientsam3.store.statistics import ChannelStatistics, ShardStatistics, store_statistics

ContentSize = Callable[[bytes], tuple[int, int]]  # from image id to (height, width); see Preprocessing.content_size


def content_sizes(preprocessing: Preprocessing, listings: Sequence[ImageListing]) -> ContentSize:
    """A function from image id to the part of the input that the image covers, read from the image's header.

    Where the preprocessing is `square`, that is the whole input, and no image is read.
    """

    def content_size(key: bytes) -> tuple[int, int]:
        if preprocessing.resize == "square":
            return preprocessing.image_size, preprocessing.image_size
        path = _find(key, listings)
        if path is not None:
            return preprocessing.content_size(*read_size(path))
        raise UserError(
            f"Image {os.fsdecode(key)!r} of the store is not in the dataset, so its padding is not known: give the "
            "--data-path that was embedded."
        )

    return content_size


def replaced_since(listings: Sequence[ImageListing]) -> Callable[[bytes, ImageStamp], bool]:
    """A function that says of an image, by its id and the stamp of the file that was embedded, whether it was replaced.

    An image that is not in the listings, and one whose stamp is not known, was not.

    Raises:
        BrokenImageError: by that function, if the image cannot be read.
    """

    def is_replaced(key: bytes, stamp: ImageStamp) -> bool:
        path = _find(key, listings)
        return stamp != UNKNOWN_IMAGE and path is not None and stamp_image(path) != stamp

    return is_replaced


def _find(key: bytes, listings: Sequence[ImageListing]) -> Path | None:
    for listing in listings:
        place = int(np.searchsorted(listing.ids, key))
        if place < len(listing) and listing.ids[place] == key:
            return listing.path(place)
    return None


def crop_to_images(
    embeddings: Iterable[torch.Tensor], sizes: torch.Tensor, manifest: StoreManifest
) -> Iterator[torch.Tensor]:
    """The cells of each embedding that show its image, (D, rows, columns): views, since padding is right and below.

    Args:
        embeddings: B times (D, E, E).
        sizes: (B, 2) height and width in pixels that each image covers; on the CPU, so that no device is waited for.
        manifest: the store's manifest.
    """
    valid = build_valid_mask(sizes, manifest.preprocessing.image_size, manifest.embed_size)
    counts = zip(valid[:, :, 0].sum(dim=1).tolist(), valid[:, 0].sum(dim=1).tolist(), strict=True)
    for grid, (rows, columns) in zip(embeddings, counts, strict=True):
        yield grid[:, :rows, :columns]


def measure_batch(embeddings: torch.Tensor, sizes: torch.Tensor, manifest: StoreManifest) -> list[ChannelStatistics]:
    """Statistics of each embedding of a batch; arguments as for `crop_to_images`."""
    return [ChannelStatistics.measure(cells) for cells in crop_to_images(embeddings, sizes, manifest)]


def continue_statistics(
    shard: Shard,
    manifest: StoreManifest,
    codec: Codec,
    content_size: ContentSize,
    advance: Callable[[int], object] = lambda count: None,
) -> ShardStatistics:
    """Bring a shard's statistics up to date: read the records that they do not cover yet, and write the result.

    Args:
        shard: the shard; no process may be writing to it, and its files may be absent.
        manifest: the store's manifest.
        codec: the store's codec.
        content_size: see `content_sizes`.
        advance: called with the number of records just read.

    Raises:
        UserError: a record is damaged, or an image is missing or unreadable.
    """
    lines = read_bound_lines(shard, manifest.record_size)[0] if shard.keys_path.exists() else b""
    keys = lines.split(b"\n")[:-1]
    statistics = ShardStatistics.read(shard, keys) or ShardStatistics(shard, manifest.embed_dim)
    if statistics.records == len(keys):
        return statistics
    for record in read_records(shard, keys, manifest.record_size, start=statistics.records):
        record.check_intact(shard)
        embeddings = codec.decode(torch.from_numpy(record.content)[None, SEED_BYTES:])
        sizes = torch.tensor([content_size(record.key)])
        statistics.add([record.key], measure_batch(embeddings, sizes, manifest)[0])
        advance(1)
    statistics.write()
    return statistics


def compute_statistics(
    directory: Path,
    listings: Sequence[ImageListing],
    advance: Callable[[int], object] = lambda count: None,
    published: StoreManifest | None = None,
) -> ChannelStatistics:
    """Bring the statistics of every shard up to its keys; returns those of the whole store.

    Args:
        directory: the store; no process may be writing to it.
        listings: the images that were embedded; not needed where the preprocessing is `square`.
        advance: called with the number of records just read.
        published: describes a store in the published format, which has no manifest of its own.

    Raises:
        UserError: as for `continue_statistics`; there is no store; or it has no manifest and `published` is not given.
    """
    manifest = (read_store_manifest(directory) or published) if directory.is_dir() else None
    if manifest is None:
        raise UserError(
            f"{directory} has no {MANIFEST_NAME}: give the folder of an embedding store, or describe a store in "
            "the published format, e.g. --published 1024 72 1008 pad."
        )
    codec, content_size = manifest.build_codec(directory), content_sizes(manifest.preprocessing, listings)
    for shard in find_shards(directory):
        continue_statistics(shard, manifest, codec, content_size, advance)
    return store_statistics(directory)
