"""Where the time of the data path goes: file to image, record to batch, on one thread and through the DataLoader."""

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.utils.data import Subset

from efficientsam3.data.augment import augment
from efficientsam3.data.images import BrokenImageError, decode_rgb, read_image
from efficientsam3.data.loader import ImageDataset, ImageLoader, build_loader
from efficientsam3.data.preprocess import resize_image
from efficientsam3.runtime.distributed import Process
from efficientsam3.runtime.errors import UserError
from efficientsam3.train.batches import with_records
from efficientsam3.train.plan import TrainPlan
from efficientsam3.train.targets import Targets


@dataclass(frozen=True)
class DataProfile:
    """What it costs to bring training images and their records into batches."""

    images: int  # that were measured
    megapixels: float  # of the median image
    milliseconds: dict[str, float]  # median of an image, by stage, on one thread
    cpu_milliseconds: dict[str, float]  # the same in CPU time: waiting for a disk or for a core does not count
    loader_rate: float  # images/s of the DataLoader with the threads that read records, as training uses them
    workers: int  # its processes; 0: the training's own

    @property
    def core_rate(self) -> float:
        """Images/s of one core that does everything, and nothing else."""
        return 1000 / sum(self.cpu_milliseconds.values())


def profile_data(plan: TrainPlan, process: Process, images: int = 64) -> DataProfile:
    """Time each stage of reading on the first training images, then the DataLoader on the same ones.

    The page cache is left as it is, so that a second run reads from memory.

    Args:
        plan: what would be trained.
        process: this process; alone.
        images: how many to measure; fewer where the training split has fewer.

    Raises:
        UserError: none of the images can be read.
    """
    count = min(images, len(plan.train))
    stages, pixels = _Stages(), []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a DataLoader's worker
    try:
        record = torch.empty(plan.targets.manifest.record_size, dtype=torch.uint8)
        for item in range(count):
            try:
                pixels.append(_read(plan.train, item, plan.targets, record, stages))
            except BrokenImageError:
                continue
    finally:
        torch.set_num_threads(threads)
    if not pixels:
        raise UserError(
            f"None of the first {images} training images in {plan.train.listing.root} can be read: see "
            "`efficientsam3 data check`."
        )
    loader = build_loader(
        Subset(plan.train, range(count)), plan.batch_size, plan.num_workers, plan.collate, process.device
    )
    seconds = _epoch_seconds(loader, plan.targets, process.device)
    return DataProfile(
        len(pixels),
        statistics.median(pixels) / 1e6,
        _medians(stages.seconds),
        _medians(stages.cpu_seconds),
        count / seconds,
        plan.num_workers,
    )


class _Stages:
    """Seconds of each stage, image by image."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.cpu_seconds: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start, cpu_start = time.perf_counter(), time.thread_time()
        yield
        self.seconds[stage].append(time.perf_counter() - start)
        self.cpu_seconds[stage].append(time.thread_time() - cpu_start)


def _medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {stage: 1000 * statistics.median(values) for stage, values in seconds.items()}


def _read(dataset: ImageDataset, item: int, targets: Targets, record: torch.Tensor, stage: _Stages) -> int:
    """What a training does for one image, in its workers and into a batch's `record`; returns the image's pixels."""
    path, row = dataset.listing.path(dataset.index(item)), int(dataset.rows[item])
    if targets.record_size([row]):  # else the teacher computes it
        with stage("read record"):
            targets.read_into(row, record)
    with stage("read image"):
        data = read_image(path)
    with stage("decode"):
        image = decode_rgb(data, path)
    with stage("augment"):
        augmented = augment(image, dataset.seed(item), dataset.augmentation)
    with stage("resize"):
        resize_image(augmented, dataset.preprocessing)
    return image.shape[-2] * image.shape[-1]


def _epoch_seconds(loader: ImageLoader, targets: Targets, device: torch.device) -> float:
    """Seconds of the second pass: in the first, the workers start."""
    for _ in with_records(loader, targets, device):
        pass
    start = time.perf_counter()
    for _ in with_records(loader, targets, device):
        pass
    return time.perf_counter() - start
