"""`efficientsam3 store`: look after an embedding store."""

import os
import sys
from typing import TYPE_CHECKING

from efficientsam3.store.requests import (
    AdviseRequest,
    BindRequest,
    ConvertRequest,
    MissingRequest,
    StatisticsRequest,
    StoreRequest,
    VerifyRequest,
)

if TYPE_CHECKING:
    from efficientsam3.store.manifest import StoreManifest


def _info(request: StoreRequest) -> None:
    """Print what a store holds."""
    from rich.table import Table
    from rich.text import Text

    from efficientsam3.runtime.console import Console
    from efficientsam3.store.maintenance import describe_store

    info = describe_store(request.store)
    print(info.manifest.model_dump_json(indent=2))
    title = Text(str(request.store))  # which may have what looks like markup
    table = Table("shard", "records", "MB", "uncommitted MB", "checksums", "bound", title=title)
    for shard in info.shards:
        sizes = (f"{shard.size / 1e6:.1f}", f"{shard.uncommitted / 1e6:.1f}")
        bound = "ids changed" if shard.bound is None else "yes" if shard.bound == shard.records else str(shard.bound)
        table.add_row(f"rank{shard.rank}", str(shard.records), *sizes, "yes" if shard.checksums else "no", bound)
    total = sum(shard.size for shard in info.shards)
    table.add_row("all", str(info.records), f"{total / 1e6:.1f}", "", "", "")
    Console().print(table)
    if any(shard.bound is None for shard in info.shards):
        print(f"Ids were changed since they were written: run `efficientsam3 store verify {request.store}`.")
    _tell_unbound(request, sum(shard.records - shard.bound for shard in info.shards if shard.bound is not None))


def _tell_unbound(request: StoreRequest, count: int) -> None:
    if count:
        print(f"{count} records are not bound to their ids: run `efficientsam3 store bind {request.store}` once.")


def _verify(request: VerifyRequest) -> None:
    """Read every record and name the damaged ones; exit code 1 if there are any."""
    from efficientsam3.data.layouts import list_images
    from efficientsam3.runtime.progress import progress_bar
    from efficientsam3.store.gather import replaced_since
    from efficientsam3.store.maintenance import describe_store
    from efficientsam3.store.repair import verify_store

    folder = request.data_path
    listings = [list_images(folder, split, request.dataset) for split in ("train", "val")] if folder else []
    with progress_bar("verify", describe_store(request.store).records) as advance:
        is_stale = replaced_since(listings) if folder else None
        result = verify_store(request.store, request.repair, advance, is_stale)
    for name in result.renamed:
        print(f"ids {'put back' if result.repaired else 'changed'}: {name}")
    for shard, key in result.damaged:
        print(f"damaged: {key} ({shard})")
    print(f"{result.records} records, {len(result.damaged)} damaged, {result.unchecked} without a checksum")
    _tell_unbound(request, result.unbound)
    if result.repaired and result.damaged:
        print("Dropped the damaged ones: run `efficientsam3 embed` again to redo them.")
    elif (result.damaged or result.renamed) and not result.repaired:
        sys.exit(1)


def _bind(request: BindRequest) -> None:
    """Bind every record to its id, in a store of an older version or in the published format."""
    from efficientsam3.runtime.progress import progress_bar
    from efficientsam3.store.maintenance import bind_store
    from efficientsam3.store.shards import find_shards

    count = sum(len(shard.read_keys()) for shard in find_shards(request.store))
    with progress_bar("bind", count) as advance:
        bound, present = bind_store(request.store, advance, _published(request))
    print(f"{bound} records bound to their ids, {present} were before")


def _convert(request: ConvertRequest) -> None:
    """Re-encode with another codec; interrupted, run it again."""
    from efficientsam3.runtime.device import select_device
    from efficientsam3.runtime.progress import progress_bar
    from efficientsam3.store.convert import convert_store
    from efficientsam3.store.maintenance import describe_store

    with progress_bar("convert", describe_store(request.store).records) as advance:
        count = convert_store(request.store, request.output, request.codec, select_device(request.device), advance)
    print(f"{count} records written to {request.output} as {request.codec}")


def _merge(request: StoreRequest) -> None:
    """Move all records into one shard; interrupted, run it again."""
    from efficientsam3.runtime.progress import progress_bar
    from efficientsam3.store.maintenance import describe_store, merge_shards

    with progress_bar("merge", describe_store(request.store).records) as advance:
        count = merge_shards(request.store, advance)
    print(f"{count} shards merged into the first")


def _missing(request: MissingRequest) -> None:
    """Print the ids of a dataset's images that the store lacks, one a line."""
    from efficientsam3.data.layouts import list_images
    from efficientsam3.store.maintenance import missing_ids

    ids = [
        os.fsdecode(image_id)
        for split in ("train", "val")
        for image_id in list_images(request.data_path, split, request.dataset).ids
    ]
    for image_id in missing_ids(request.store, ids):
        print(image_id)


def _statistics(request: StatisticsRequest) -> None:
    """Gather the teacher's mean and variance per channel, where the store lacks them."""
    from efficientsam3.data.layouts import list_images
    from efficientsam3.runtime.progress import progress_bar
    from efficientsam3.store.gather import compute_statistics
    from efficientsam3.store.shards import find_shards

    shards = find_shards(request.store) if request.store.is_dir() else ()
    count = sum(len(shard.read_keys()) for shard in shards)
    listings = [
        list_images(request.data_path, split, request.dataset) for split in ("train", "val") if request.data_path
    ]
    with progress_bar("statistics", count) as advance:
        total = compute_statistics(request.store, listings, advance, _published(request))
    deviation = total.variance.sqrt()
    print(f"{count} records, {total.cells} cells that show an image, {len(total.mean)} channels")
    print(f"means from {total.mean.min():.4g} to {total.mean.max():.4g}, mean variance {total.variance.mean():.4g}")
    print(f"standard deviations from {deviation.min():.4g} to {deviation.max():.4g}, median {deviation.median():.4g}")


def _published(request: BindRequest) -> "StoreManifest | None":
    from pydantic import ValidationError

    from efficientsam3.data.preprocess import Preprocessing
    from efficientsam3.runtime.errors import UserError
    from efficientsam3.store.manifest import StoreManifest

    if request.published is None:
        return None
    dim, size, pixels, resize = request.published
    try:
        preprocessing = Preprocessing.model_validate({"image_size": pixels, "resize": resize})
        return StoreManifest.model_validate({"embed_dim": dim, "embed_size": size, "preprocessing": preprocessing})
    except ValidationError as error:
        given = " ".join(request.published)
        raise UserError(f"--published {given} is not understood: give e.g. 1024 72 1008 pad.") from error


def _advise(request: AdviseRequest) -> None:
    """Measure each codec on the store's first embeddings and recommend one."""
    from rich.table import Table

    from efficientsam3.runtime.console import Console
    from efficientsam3.store.advise import measure_codecs, recommend

    measures = measure_codecs(request.store, request.count)
    columns = ("codec", "bytes an image", "ratio", "relative error", "cosine", "encode/s", "decode/s", "TB", "GB/s")
    table = Table(title=f"{request.images} images, trained at {request.speed:g} images/s")
    for column in columns:
        table.add_column(column, no_wrap=True)
    for item in measures:
        table.add_row(
            item.codec,
            str(item.record_size),
            f"{item.ratio:.2f}",
            f"{item.relative_error:.4f}",
            f"{item.cosine:.5f}",
            f"{item.encode_rate:.1f}",
            f"{item.decode_rate:.1f}",
            f"{item.record_size * request.images / 1e12:.2f}",
            f"{item.record_size * request.speed / 1e9:.2f}",
        )
    Console(width=max(Console().width, 110)).print(table)
    best = recommend(measures, request.least_cosine)
    print(
        f"Recommended: DISTILL.CODEC {best.codec}, the smallest with a cosine of at least {request.least_cosine:g} "
        f"({best.ratio:.1f} times smaller than float16)."
    )


ACTIONS = {
    "info": (StoreRequest, _info),
    "verify": (VerifyRequest, _verify),
    "bind": (BindRequest, _bind),
    "convert": (ConvertRequest, _convert),
    "merge-shards": (StoreRequest, _merge),
    "export-missing-list": (MissingRequest, _missing),
    "statistics": (StatisticsRequest, _statistics),
    "advise": (AdviseRequest, _advise),
}
