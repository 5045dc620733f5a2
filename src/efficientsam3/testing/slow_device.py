"""A device that computes beside the host, as a GPU does, on any machine."""

import time
from collections.abc import Callable

import torch

from efficientsam3.embed.pipeline import Buffer, HostCopies


class SlowDevice(HostCopies):
    """Each batch is launched at once and takes `seconds`, one after the other; the results are those of the CPU."""

    def __init__(self, seconds: float = 0.0) -> None:
        """Idle at first."""
        super().__init__(torch.device("cpu"))
        self.ahead = 1
        self._seconds = seconds
        self._idle_from = 0.0

    def start(self, payloads: torch.Tensor, summary: torch.Tensor, buffer: Buffer) -> Callable[[], object]:
        """See `HostCopies`; nothing is in the buffer before it was waited for."""
        until = self._idle_from = max(time.monotonic(), self._idle_from) + self._seconds
        copy = super().start

        def wait() -> None:
            time.sleep(max(0.0, until - time.monotonic()))
            copy(payloads, summary, buffer)

        return wait
