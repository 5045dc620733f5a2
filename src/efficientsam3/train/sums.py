"""Sums of named losses over an epoch, kept on the device."""

import logging
from collections.abc import Sequence
from typing import Self

import torch

from efficientsam3.runtime.distributed import all_gather, sum_over_processes
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.train.objective import LOSS, Averages, Losses

logger = logging.getLogger(LOGGER_NAME)
_COUNT = "count"
# What checkpoints summed, in this order, before losses had names.
_UNNAMED = (LOSS, "mse", "cosine", _COUNT)


class LossSums:
    """Each loss summed over images, and how many images there were. The first batch says which losses there are."""

    def __init__(self, device: torch.device) -> None:
        """Start without a batch."""
        self._device = device
        self._names: tuple[str, ...] = ()
        self._values = torch.zeros(1, device=device)  # of each name, then the count

    def add(self, losses: Losses, weights: torch.Tensor) -> None:
        """Add a batch's losses: averages over its images, which have `weights` (B,). No device is waited for.

        A batch whose loss is not finite does not count.
        """
        if self._names and losses.keys() != set(self._names):
            logger.warning("the losses have changed within the epoch: its averages begin here")
            self._names = ()
        self._extend(tuple(losses))
        count = weights.sum() * losses[LOSS].detach().isfinite()
        figures = torch.stack([losses[name].detach() for name in self._names]).nan_to_num(0.0, 0.0, 0.0)
        self._values += torch.cat([figures * count, count[None]])

    def averages(self) -> Averages:
        """The average of each loss over all processes, which must all call this; empty without images."""
        # A process without a batch does not know the names.
        self._extend(next(filter(None, all_gather(self._names)), ()))
        *sums, count = sum_over_processes(self._values).tolist()
        return {name: total / count for name, total in zip(self._names, sums, strict=True)} if count else {}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """This process's sums, on the CPU: scalars by the losses' names, and `count`."""
        return dict(zip((*self._names, _COUNT), self._values.cpu().clone(), strict=True))

    @classmethod
    def from_states(cls, states: Sequence[dict[str, torch.Tensor] | torch.Tensor], device: torch.device) -> Self:
        """The sum of what several processes saved, in either form that checkpoints have had."""
        sums = cls(device)
        for state in states:
            named = dict(zip(_UNNAMED, state, strict=True)) if isinstance(state, torch.Tensor) else dict(state)
            count = named.pop(_COUNT)
            if named:
                sums._extend(tuple(named))
                sums._values += torch.stack([*(named[name] for name in sums._names), count]).to(device)
        return sums

    def _extend(self, names: tuple[str, ...]) -> None:
        """Sum these losses from now on, unless others are summed already."""
        if not self._names and names:
            self._names = names
            self._values = torch.zeros(len(names) + 1, device=self._device)
