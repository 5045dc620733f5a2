"""Peak memory, and freed memory that is kept for the next tensor unless the user has configured glibc."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from efficientsam3.runtime.memory import peak_of

COUNT = """
import resource, torch
from efficientsam3.runtime.memory import keep_freed_memory
kept = keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 26, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(10):  # the first few do not fit into each other's place
    faults()
print(kept, faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is of glibc")
def test_a_tensor_takes_the_pages_of_the_one_before() -> None:
    """Fresh memory costs a page fault for each 4 kB or 2 MB of the 64 MB."""

    def count(**variables: str) -> tuple[str, int]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
        command = [sys.executable, "-c", COUNT]
        done = subprocess.run(command, env=inherited | variables, capture_output=True, text=True, check=True)
        kept, faults = done.stdout.split()
        return kept, int(faults)

    assert count()[0] == "True"
    assert count()[1] < 5
    kept, faults = count(MALLOC_MMAP_THRESHOLD_="131072")
    assert kept == "False"
    assert faults >= 32


def test_peak_memory_is_that_of_the_work() -> None:
    size = 1 << 26

    def work() -> None:
        torch.ones(size, dtype=torch.uint8)

    peak = peak_of(work, torch.device("cpu"))
    if peak is not None:
        assert 0.9 * size < peak < 1.5 * size


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is of glibc")
def test_memory_kept_from_before_counts() -> None:
    """20 MB in blocks that are small enough for glibc to keep."""

    def work() -> None:
        blocks = [torch.ones(1 << 16, dtype=torch.uint8) for _ in range(320)]
        del blocks

    work()
    peak = peak_of(work, torch.device("cpu"))
    assert peak is not None
    assert peak > 16e6
