"""A device that computes beside the host, as a GPU does, on any machine."""

import time
from collections.abc import Callable

import torch

from efficientsam3.embed.pipeline import Buffer, HostCopies


class SlowDevice(HostCopies):
    """Each batch is launched at once; it is computed on the CPU, and there after `seconds` and those of its copy.

    One batch is computed at a time, and one copied, which may be another.
    """

    def __init__(self, seconds: float = 0.0, copy_seconds: float = 0.0) -> None:
        """Idle at first."""
        super().__init__(torch.device("cpu"))
        self.ahead = 1
        self._seconds, self._copy_seconds = seconds, copy_seconds
        self._computed, self._copied = 0.0, 0.0  # when everything that was launched will be

    def start(self, payloads: torch.Tensor, summary: torch.Tensor, buffer: Buffer) -> Callable[[], object]:
        """See `HostCopies`; nothing is in the buffer before it was waited for."""
        self._computed = max(time.monotonic(), self._computed) + self._seconds
        until = self._copied = max(self._computed, self._copied) + self._copy_seconds
        copy = super().start

        def wait() -> None:
            time.sleep(max(0.0, until - time.monotonic()))
            copy(payloads, summary, buffer)

        return wait
