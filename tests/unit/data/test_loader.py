import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from efficientsam3.data.loader import (
    ImageSample,
    build_loader,
    check_shared_memory,
    collate_images,
    collate_never_empty,
    count_readers,
)
from efficientsam3.runtime.errors import UnreadableError, UserError

CPU = torch.device("cpu")


def test_reading_processes_share_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("efficientsam3.data.loader.usable_cores", lambda: 96)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert count_readers("auto") == 12
    assert count_readers(0) == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "97")
    assert count_readers("auto") == 1
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert count_readers("auto") == 16


class _Samples(torch.utils.data.Dataset[Any]):
    def __init__(self, get: Callable[[int], ImageSample | UserError | None]) -> None:
        self._get = get

    def __len__(self) -> int:
        return 4

    def __getitem__(self, item: int) -> ImageSample | UserError | None:
        return self._get(item)


def sample(item: int) -> ImageSample:
    return ImageSample(str(item), torch.full((3, 8, 8), item, dtype=torch.uint8), (8, 8), 0, item)


def unreadable(item: int) -> ImageSample | UserError:
    return UnreadableError("rank0-values.bin cannot be read (EIO).") if item == 2 else sample(item)


def broken(item: int) -> ImageSample | UserError:
    return UserError("broken") if item == 2 else sample(item)


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_images_are_reported_and_unreadable_stores_are_raised(workers: int) -> None:
    loader = build_loader(_Samples(broken), 2, workers, collate_images, CPU)
    assert len(loader) == 2
    assert [(batch.image_ids, batch.broken) for batch in loader] == [(["0", "1"], []), (["3"], ["broken"])]
    batches = iter(build_loader(_Samples(unreadable), 2, workers, collate_images, CPU))
    assert next(batches).pixels[1].unique().tolist() == [1]
    with pytest.raises(UnreadableError, match=r"^rank0-values\.bin cannot be read \(EIO\)\.$"):
        next(batches)


def test_a_worker_without_memory_to_share_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are forked here, with the patch."""

    def refuse(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    loader = build_loader(_Samples(sample), 2, 1, partial(collate_never_empty, image_size=8), CPU)
    loader._loader.multiprocessing_context = "fork"
    with pytest.raises(UserError, match=r"/dev/shm has no room .*No space left.*--shm-size"):
        next(iter(loader))


def test_shared_memory_is_checked_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/shm").is_dir():
        pytest.skip("there is no /dev/shm here")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 0, 10**6))
    check_shared_memory(10**6, image_size=1008, batch_size=4, num_workers=0)
    check_shared_memory(1, image_size=500, batch_size=1, num_workers=8)
    with pytest.raises(UserError, match=r"36\.6 MB are needed, 1\.0 are free"):
        check_shared_memory(10**6, image_size=1008, batch_size=4, num_workers=2)
