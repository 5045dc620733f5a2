"""What an embedding run will take, measured on a few batches before days of compute."""

import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from efficientsam3.data.loader import read_ahead
from efficientsam3.embed.batches import image_batches, load_teacher
from efficientsam3.embed.pipeline import BUFFERS, Pipeline
from efficientsam3.embed.plan import EmbedPlan, Indices, free_space, missing_images, standing_folder
from efficientsam3.runtime.distributed import Process
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.memory import peak_of
from efficientsam3.store.advise import candidates
from efficientsam3.store.codecs import build_codec, payload_size, pca_components
from efficientsam3.store.encodings import Codec
from efficientsam3.store.manifest import StoreManifest
from efficientsam3.store.projection import Projection
from efficientsam3.store.records import SEED_BYTES
from efficientsam3.store.shards import Shard
from efficientsam3.store.statistics import ShardStatistics
from efficientsam3.store.writer import BackgroundWriter

_SECONDS = 120.0
_DISK_SHARE = 2  # what is written for a moment may take one in so many of the free bytes


@dataclass(frozen=True)
class EmbedRate:
    """How fast one process embeds."""

    images: float  # a second
    batches: int  # that were timed
    warm_up: int  # batches before those


@dataclass(frozen=True)
class EmbedEstimate:
    """What an embedding run will take."""

    images: int
    missing: int  # images that the store lacks
    free: int  # bytes on the store's disk
    codec_sizes: dict[str, int]  # bytes of the missing images, by codec
    rate: EmbedRate | None  # of one process here; None where nothing is missing
    memory: int | None  # bytes that teacher and batches take at their peak; None where the system does not report it

    def seconds(self, processes: int) -> float:
        """How long that many processes like this one take."""
        return self.missing / (self.rate.images * processes) if self.rate else 0.0


def estimate_embedding(plan: EmbedPlan, process: Process, batches: int = 20) -> EmbedEstimate:
    """Embed a few batches, and keep nothing.

    Args:
        plan: of the run.
        process: this process; alone.
        batches: how many to time, at most.

    Raises:
        UserError: see `measure_rate`.
    """
    missing, manifest = missing_images(plan), plan.manifest
    count, free = sum(map(len, missing)), free_space(plan.store_dir)
    names = dict.fromkeys([manifest.codec, *candidates(manifest.embed_dim)])
    shape = (manifest.embed_dim, manifest.embed_size)
    sizes = {name: count * (SEED_BYTES + payload_size(name, *shape)) for name in names}
    rates: list[EmbedRate] = []

    def work() -> None:
        if count:
            rates.append(measure_rate(plan, missing, process, batches))

    memory = peak_of(work, process.device)
    return EmbedEstimate(plan.count, count, free, sizes, rates[0] if rates else None, memory)


def measure_rate(
    plan: EmbedPlan, missing: list[Indices], process: Process, batches: int, seconds: float = _SECONDS
) -> EmbedRate:
    """Embed batches as a run does, from image files to records on the store's disk, in a temporary folder next to it.

    What was read before the first batch was computed does not count: as many batches as the workers read ahead, and as
    the host has memory for, pass before those that are timed, if there are so many.

    Args:
        plan: of the run.
        missing: images of each split, some of which are embedded.
        process: this process; alone.
        batches: how many to time, at most.
        seconds: no further batch is timed after those; half of them also end the warm-up.

    Raises:
        UserError: the disk has no room for two batches, or the teacher gives a value that is not finite.
    """
    ahead = read_ahead(plan.num_workers) + BUFFERS
    folder, size = standing_folder(plan.store_dir), plan.batch_size * plan.manifest.record_size
    room = free_space(folder) // (_DISK_SHARE * size)
    if room < 2:
        raise UserError(f"{folder} has no room for the {2 * size / 1e9:.3f} GB that measuring takes for a moment.")
    # Whole batches of one split, and no more images than that has, but for two batches.
    largest = max(missing, key=len)
    count = min(ahead + batches, room, max(2, len(largest) // plan.batch_size))
    images = [np.resize(each, count * plan.batch_size * (each is largest)) for each in missing]
    codec, embed_dim = _build_codec(plan.manifest), plan.manifest.embed_dim
    pipeline = Pipeline(load_teacher(plan, process), plan.manifest, codec, process.device, plan.batch_size)
    with tempfile.TemporaryDirectory(prefix=".efficientsam3-plan-", dir=folder) as temporary:
        shard = Shard(Path(temporary), 0)
        statistics = ShardStatistics(shard, embed_dim)
        with (
            BackgroundWriter(shard, plan.manifest.record_size, statistics, queued=0) as writer,
            closing(pipeline.run(image_batches(plan, images, process), writer)) as written,
        ):
            begin = start = time.monotonic()
            warm_up = done = embedded = 0
            for batch in written:
                now = time.monotonic()
                if done == 0 and warm_up < min(ahead, count - 1) and (now - begin < seconds / 2 or not warm_up):
                    warm_up, start = warm_up + 1, now
                    continue
                done, embedded = done + 1, embedded + len(batch.image_ids)
                if now - start > seconds:
                    break
            return EmbedRate(embedded / (time.monotonic() - start), done, warm_up)


def _build_codec(manifest: StoreManifest) -> Codec:
    """The store's codec; with components that mean nothing, which takes as long as with those of the store."""
    components, dim = pca_components(manifest.codec), manifest.embed_dim
    projection = None
    if components is not None:
        projection = Projection(torch.zeros(dim), torch.eye(components, dim), torch.ones(components), variance_kept=1.0)
    return build_codec(manifest.codec, dim, manifest.embed_size, projection)
