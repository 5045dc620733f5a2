"""`efficientsam3 store`: look after an embedding store."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from efficientsam3.store.manifest import Manifest

# SA-1B, and the training speed whose read rate is told unless another is given.
_IMAGES, _SPEED = 1_100_000, 300.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, summary: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        sub.add_argument("store", type=Path, metavar="DIR", help="an export's embeddings folder")
        return sub

    action("info", "print what a store holds")
    verify = action("verify", "read every record and name the damaged ones; exit code 1 if there are any")
    verify.add_argument("--repair", action="store_true", help="drop damaged records: the next export redoes them")
    convert = action("convert", "re-encode with another codec; interrupted, run it again")
    convert.add_argument("--codec", required=True, help="float16, int8, int4, pca{K}-int8 or pca{K}-int4")
    convert.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the new store")
    convert.add_argument("--device", choices=["auto", "cpu", "mps", "cuda"], default="auto", help="where to compute")
    action("merge-shards", "move all records into one shard; interrupted, run it again")
    missing = action("export-missing-list", "print the ids of a dataset's images that the store lacks, one a line")
    missing.add_argument("--data-path", type=Path, required=True, metavar="DIR", help="folder with images/{train,val}")
    missing.add_argument("--dataset", choices=["sa1b", "images", "coco"], default="sa1b", help="its layout")
    statistics = action("statistics", "gather the teacher's mean and variance per channel, for what lacks them")
    statistics.add_argument(
        "--data-path",
        type=Path,
        metavar="DIR",
        help="the dataset that was exported; needed where its pictures are padded",
    )
    statistics.add_argument(
        "--published",
        nargs=4,
        metavar=("DIM", "SIZE", "PIXELS", "RESIZE"),
        help="what a store without a manifest holds: channels, cells a side, pixels a side of the input, square or pad",
    )
    statistics.add_argument("--dataset", choices=["sa1b", "images", "coco"], default="sa1b", help="its layout")
    advise = action("advise", "measure each codec on the store's first embeddings and recommend one")
    advise.add_argument("--count", type=int, default=64, metavar="N", help="how many embeddings (default: %(default)s)")
    advise.add_argument("--images", type=int, default=_IMAGES, metavar="N", help="of the dataset (%(default)s)")
    advise.add_argument("--speed", type=float, default=_SPEED, help="images/s of the training (default: %(default)s)")
    advise.add_argument("--least-cosine", type=float, default=0.995, metavar="C", help="to keep (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Do one action."""
    {
        "info": _info,
        "verify": _verify,
        "convert": _convert,
        "merge-shards": _merge,
        "export-missing-list": _missing,
        "statistics": _statistics,
        "advise": _advise,
    }[args.action](args)


def _info(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from efficientsam3.store.maintenance import describe_store

    info = describe_store(args.store)
    print(info.manifest.model_dump_json(indent=2))
    table = Table("shard", "records", "MB", "uncommitted MB", "checksums", title=str(args.store))
    for shard in info.shards:
        sizes = (f"{shard.size / 1e6:.1f}", f"{shard.uncommitted / 1e6:.1f}")
        table.add_row(f"rank{shard.rank}", str(shard.records), *sizes, "yes" if shard.checksums else "no")
    total = sum(shard.size for shard in info.shards)
    table.add_row("all", str(info.records), f"{total / 1e6:.1f}", "", "")
    Console().print(table)


def _verify(args: argparse.Namespace) -> None:
    from efficientsam3.runtime.progress import progress_bar
    from efficientsam3.store.maintenance import describe_store, verify_store

    with progress_bar("verify", describe_store(args.store).records) as advance:
        result = verify_store(args.store, args.repair, advance)
    for shard, key in result.damaged:
        print(f"damaged: {key} ({shard})")
    print(f"{result.records} records, {len(result.damaged)} damaged, {result.unchecked} without a checksum")
    if result.repaired:
        print("Dropped the damaged ones: run the same export again to redo them.")
    elif result.damaged:
        sys.exit(1)


def _convert(args: argparse.Namespace) -> None:
    from efficientsam3.runtime.device import select_device
    from efficientsam3.runtime.progress import progress_bar
    from efficientsam3.store.convert import convert_store
    from efficientsam3.store.maintenance import describe_store

    with progress_bar("convert", describe_store(args.store).records) as advance:
        count = convert_store(args.store, args.output, args.codec, select_device(args.device), advance)
    print(f"{count} records written to {args.output} as {args.codec}")


def _merge(args: argparse.Namespace) -> None:
    from efficientsam3.runtime.progress import progress_bar
    from efficientsam3.store.maintenance import describe_store, merge_shards

    with progress_bar("merge", describe_store(args.store).records) as advance:
        count = merge_shards(args.store, advance)
    print(f"{count} shards merged into the first")


def _missing(args: argparse.Namespace) -> None:
    from efficientsam3.data.listing import list_images
    from efficientsam3.store.maintenance import missing_ids

    ids = [
        os.fsdecode(image_id)
        for split in ("train", "val")
        for image_id in list_images(args.data_path, split, args.dataset).ids
    ]
    for image_id in missing_ids(args.store, ids):
        print(image_id)


def _statistics(args: argparse.Namespace) -> None:
    from efficientsam3.data.listing import list_images
    from efficientsam3.runtime.progress import progress_bar
    from efficientsam3.store.gather import compute_statistics
    from efficientsam3.store.shards import find_shards

    shards = find_shards(args.store) if args.store.is_dir() else ()
    count = sum(len(shard.read_keys()) for shard in shards)
    listings = [list_images(args.data_path, split, args.dataset) for split in ("train", "val") if args.data_path]
    with progress_bar("statistics", count) as advance:
        total = compute_statistics(args.store, listings, advance, _published(args))
    deviation = total.variance.sqrt()
    print(f"{count} records, {total.cells} cells that show a picture, {len(total.mean)} channels")
    print(f"means from {total.mean.min():.4g} to {total.mean.max():.4g}, mean variance {total.variance.mean():.4g}")
    print(f"standard deviations from {deviation.min():.4g} to {deviation.max():.4g}, median {deviation.median():.4g}")


def _published(args: argparse.Namespace) -> "Manifest | None":
    from pydantic import ValidationError

    from efficientsam3.data.preprocess import Preprocessing
    from efficientsam3.runtime.errors import UserError
    from efficientsam3.store.manifest import Manifest

    if args.published is None:
        return None
    dim, size, pixels, resize = args.published
    try:
        preprocessing = Preprocessing.model_validate({"image_size": pixels, "resize": resize})
        return Manifest.model_validate({"embed_dim": dim, "embed_size": size, "preprocessing": preprocessing})
    except ValidationError as error:
        given = " ".join(args.published)
        raise UserError(f"--published {given} is not understood: give e.g. 1024 72 1008 pad.") from error


def _advise(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from efficientsam3.store.advise import measure_codecs, recommend

    measures = measure_codecs(args.store, args.count)
    columns = ("codec", "bytes an image", "ratio", "relative error", "cosine", "encode/s", "decode/s", "TB", "GB/s")
    table = Table(title=f"{args.images} images, trained at {args.speed:g} images/s")
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
            f"{item.record_size * args.images / 1e12:.2f}",
            f"{item.record_size * args.speed / 1e9:.2f}",
        )
    Console(width=max(Console().width, 110)).print(table)
    best = recommend(measures, args.least_cosine)
    print(
        f"Recommended: DISTILL.CODEC {best.codec}, the smallest with a cosine of at least {args.least_cosine:g} "
        f"({best.ratio:.1f} times smaller than float16)."
    )
