"""Steps whose gradient is not finite: they are skipped and counted, and too many in a row end the run."""

import logging

import torch
from torch import nn

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.logging import LOGGER_NAME

logger = logging.getLogger(LOGGER_NAME)
_MOST_IN_A_ROW = 10


class FiniteWatch:
    """Notes on the device which steps had a non-finite gradient, and reads them all at once, now and then.

    Asking a GPU after each step would make it wait for the answer. All processes see the same gradient, so that they
    count and stop alike; each names its own images.
    """

    def __init__(self) -> None:
        """Start with no step seen."""
        self.in_a_row, self.skipped = 0, 0  # as of the last look; `skipped` since it was last set to 0
        self._unseen: list[tuple[int, list[str], torch.Tensor]] = []

    def note(self, step: int, image_ids: list[str], bad: torch.Tensor) -> None:
        """Remember a step: its images, and whether it was skipped, a bool scalar on the device."""
        self._unseen.append((step, image_ids, bad))

    def look(self) -> None:
        """Report the steps since the last look.

        Raises:
            UserError: ten steps in a row had a non-finite gradient.
        """
        if not self._unseen:
            return
        flags = torch.stack([bad for _, _, bad in self._unseen]).tolist()
        unseen, self._unseen = self._unseen, []
        for (step, image_ids, _), bad in zip(unseen, flags, strict=True):
            self.in_a_row = self.in_a_row + 1 if bad else 0
            self.skipped += bad
            if bad:
                self._warn(step, ", ".join(image_ids))

    def _warn(self, step: int, names: str) -> None:
        logger.warning("step %d: the loss or its gradient is not finite, step skipped (images %s)", step, names)
        if self.in_a_row == _MOST_IN_A_ROW:
            raise UserError(
                f"{_MOST_IN_A_ROW} steps in a row had a non-finite gradient (last images: {names}): lower "
                "TRAIN.BASE_LR, use --disable-amp, or check those images' embeddings."
            )


class StatisticsGuard:
    """Undoes what a skipped step has put into BatchNorm's running statistics.

    A student has two small ones for each of its up to 219 BatchNorms. They are copied all at once, because a kernel for
    each would take longer to launch than to run.
    """

    def __init__(self, model: nn.Module) -> None:
        """Guard the floating-point buffers of `model`."""
        self._buffers = [buffer.view(-1) for buffer in model.buffers() if buffer.is_floating_point()]
        self._sizes = [len(buffer) for buffer in self._buffers]
        self._kept = torch.cat(self._buffers) if self._buffers else torch.empty(0)

    @torch.no_grad()
    def keep(self) -> None:
        """Remember them, before a step."""
        if self._buffers:
            torch.cat(self._buffers, out=self._kept)

    @torch.no_grad()
    def restore(self, bad: torch.Tensor) -> None:
        """Put them back where `bad`, a bool scalar on their device, is set, without waiting for it."""
        if self._buffers:
            wanted = torch.where(bad, self._kept, torch.cat(self._buffers))
            torch._foreach_copy_(self._buffers, torch.split(wanted, self._sizes))
