"""What an export will take, measured on a few batches before days of compute."""

import resource
import sys
import time
from dataclasses import dataclass
from itertools import islice

import torch

from efficientsam3.config.schema import ExportConfig
from efficientsam3.embed.batches import embed_batch, image_batches, load_teacher
from efficientsam3.embed.plan import free_space, missing_images, plan_export
from efficientsam3.runtime.distributed import Process
from efficientsam3.store.advise import candidates
from efficientsam3.store.codecs import SEED_BYTES, payload_size


@dataclass(frozen=True)
class ExportEstimate:
    """What an export will take."""

    images: int
    missing: int  # images that the store lacks
    free: int  # bytes on the store's disk
    codec_sizes: dict[str, int]  # bytes of the missing images, by codec
    rate: float  # images/s of one process here; 0 where nothing is missing
    memory: int  # most bytes that this process took, on the GPU where there is one

    def seconds(self, processes: int) -> float:
        """How long that many processes like this one take."""
        return self.missing / (self.rate * processes) if self.missing else 0.0


def estimate_export(config: ExportConfig, process: Process, batches: int = 3) -> ExportEstimate:
    """Run the teacher on a few batches, after one to warm up, and write nothing.

    Args:
        config: that of the export.
        process: this process; alone.
        batches: how many to time.

    Raises:
        UserError: see `plan_export`.
    """
    plan = plan_export(config)
    missing = missing_images(plan)
    shape = (config.DISTILL.EMBED_DIM, config.DISTILL.EMBED_SIZE)
    count = sum(map(len, missing))
    names = dict.fromkeys([config.DISTILL.CODEC, *candidates(shape[0])])
    sizes = {name: count * (SEED_BYTES + payload_size(name, *shape)) for name in names}
    rate = 0.0
    if count:
        teacher = load_teacher(config, plan.preprocessing, process)
        done, start = 0, time.monotonic()
        for number, batch in enumerate(islice(image_batches(config, plan, missing, process), batches + 1)):
            # Copying to the CPU waits for the device.
            embed_batch(teacher, batch, plan.preprocessing, process.device).cpu()
            done += len(batch.image_ids)
            if number == 0 and count > done:
                done, start = 0, time.monotonic()
        rate = done / (time.monotonic() - start)
    return ExportEstimate(plan.count, count, free_space(plan.store_dir), sizes, rate, _peak_memory(process.device))


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Kilobytes, but on macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
