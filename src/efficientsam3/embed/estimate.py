"""What an embedding run will take, measured on a few batches before days of compute."""

import time
from dataclasses import dataclass
from itertools import islice

from efficientsam3.embed.batches import embed_batch, image_batches, load_teacher
from efficientsam3.embed.plan import EmbedPlan, Indices, free_space, missing_images
from efficientsam3.runtime.distributed import Process
from efficientsam3.runtime.memory import peak_of
from efficientsam3.store.advise import candidates
from efficientsam3.store.codecs import payload_size
from efficientsam3.store.records import SEED_BYTES


@dataclass(frozen=True)
class EmbedEstimate:
    """What an embedding run will take."""

    images: int
    missing: int  # images that the store lacks
    free: int  # bytes on the store's disk
    codec_sizes: dict[str, int]  # bytes of the missing images, by codec
    rate: float  # images/s of one process here; 0 where nothing is missing
    memory: int | None  # bytes that teacher and batches take at their peak; None where the system does not report it

    def seconds(self, processes: int) -> float:
        """How long that many processes like this one take."""
        return self.missing / (self.rate * processes) if self.missing else 0.0


def estimate_embedding(plan: EmbedPlan, process: Process, batches: int = 3) -> EmbedEstimate:
    """Run the teacher on a few batches, after one to warm up, and write nothing.

    Args:
        plan: of the run.
        process: this process; alone.
        batches: how many to time.
    """
    missing, manifest = missing_images(plan), plan.manifest
    count = sum(map(len, missing))
    names = dict.fromkeys([manifest.codec, *candidates(manifest.embed_dim)])
    shape = (manifest.embed_dim, manifest.embed_size)
    sizes = {name: count * (SEED_BYTES + payload_size(name, *shape)) for name in names}
    rates = [0.0]

    def work() -> None:
        if count:
            rates.append(_measure(plan, missing, process, batches))

    memory = peak_of(work, process.device)
    return EmbedEstimate(plan.count, count, free_space(plan.store_dir), sizes, rates[-1], memory)


def _measure(plan: EmbedPlan, missing: list[Indices], process: Process, batches: int) -> float:
    """Images per second."""
    teacher, done, start = load_teacher(plan, process), 0, time.monotonic()
    for number, batch in enumerate(islice(image_batches(plan, missing, process), batches + 1)):
        # Copying to the CPU waits for the device.
        embed_batch(teacher, batch, process.device).cpu()
        done += len(batch.image_ids)
        if number == 0 and sum(map(len, missing)) > done:  # that was the warm-up
            done, start = 0, time.monotonic()
    return done / (time.monotonic() - start)
