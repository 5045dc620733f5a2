"""Batches on their way to the device."""

from collections.abc import Iterable, Iterator

import torch

from efficientsam3.train.records import DistillBatch
from efficientsam3.train.stages import Label


def on_device(batches: Iterable[DistillBatch], device: torch.device, stage: Label) -> Iterator[DistillBatch]:
    """The batches on `device`; on a GPU, the next one is copied while the device computes on the one before."""
    if device.type != "cuda":
        for batch in batches:
            with stage("transfer"):
                batch.to(device)
            yield batch
        return
    copying, waiting = torch.cuda.Stream(device), None  # type: ignore[no-untyped-call]
    for batch in batches:
        with torch.cuda.stream(copying), stage("transfer"):
            batch.to(device)
        if waiting is not None:
            yield _arrived(waiting, copying, device)
        waiting = batch
    if waiting is not None:
        yield _arrived(waiting, copying, device)


def _arrived(batch: DistillBatch, copying: torch.cuda.Stream, device: torch.device) -> DistillBatch:
    computing = torch.cuda.current_stream(device)
    computing.wait_stream(copying)
    for tensor in batch.tensors:
        tensor.record_stream(computing)  # or its memory would be given away while it is still read
    return batch
