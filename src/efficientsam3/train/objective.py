"""What a training minimises: from the student's output and the teacher's embeddings to named losses.

A further loss term is a function here and an entry in `TERMS`; its weight in YAML is `DISTILL.TERMS.<name>`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional as F

from efficientsam3.checkpoints.standardisation import Standardisation
from efficientsam3.runtime.errors import UserError
from efficientsam3.train.prompts import Shown

LOSS = "loss"  # the name of what is minimised; every objective gives it
Losses = dict[str, torch.Tensor]  # scalars of one batch, on its device
Averages = dict[str, float]
Necks = Mapping[str, nn.Module]  # necks that are trained with the student, "detector" and "tracker", for its features
NO_NECKS: Necks = {}
# Student's and teacher's features (B, D, E, E) float, and valid cells (B, E, E) bool with at least one set in each
# image, to each image's loss (B,) float32.
Term = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
_POOLED_SIDES = (2, 4)  # cells
_RELATED_SIDE = 16  # cells a side, of whom every two are compared


class Objective(Protocol):
    """What a training minimises. Whatever names it gives are summed, saved, logged and drawn."""

    def __call__(
        self,
        student: torch.Tensor,
        targets: torch.Tensor,
        valid: torch.Tensor,
        weights: torch.Tensor,
        shown: Shown,
        necks: Necks = NO_NECKS,
    ) -> Losses:
        """The losses of one batch, averaged over its images.

        Args:
            student: (B, D, E, E) float, what the student gives.
            targets: (B, D, E, E) float, the teacher's embeddings.
            valid: (B, E, E) bool, see `build_valid_mask`.
            weights: (B,) float, 1 for an image and 0 for a stand-in that must not count.
            shown: what the images show.
            necks: those that are trained with the student; its features alone pass them.

        Returns:
            Scalars by name: `loss`, which is minimised, and any others, which are only recorded.
        """
        ...

    def summarise(self, averages: Averages) -> Averages:
        """An epoch's averages of the losses, with figures that follow from them alone."""
        ...

    def raw(self, student: nn.Module) -> nn.Module:
        """The student giving the teacher's embeddings, whatever it is trained to give."""
        ...


class FeatureObjective:
    """A weighted sum of terms, each a difference between the student's and the teacher's features.

    With a standardisation, what is minimised is the loss of standardised features. The terms are recorded of raw
    features and valid cells in either case, so that trainings can be compared.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        standardisation: Standardisation | None = None,
        variance: float | None = None,
        alone: bool = True,
        padding: bool = False,
    ) -> None:
        """Set up.

        Args:
            weights: weight of each term, by its name in `TERMS`.
            standardisation: what the student's output is standardised by, on the device of the features.
            variance: mean over channels of the teacher's variance; where it is known, `relative_mse` is recorded.
            alone: whether nothing else is minimised.
            padding: whether the cells that are not valid are learnt as well.

        Raises:
            UserError: there is no such term; or no term has a weight, and nothing else is minimised.
        """
        unknown = sorted(weights.keys() - TERMS.keys())
        if unknown:
            raise UserError(f"DISTILL.TERMS {unknown[0]!r} is not a loss term: use {', '.join(sorted(TERMS))}.")
        if alone and not any(weights.values()):
            raise UserError("Every loss term has the weight 0, so nothing would be learnt: give one of them a weight.")
        self.standardisation = standardisation
        self._weights = dict(weights)
        self._variance = variance
        self._padding = padding

    def __call__(
        self,
        student: torch.Tensor,
        targets: torch.Tensor,
        valid: torch.Tensor,
        weights: torch.Tensor,
        shown: Shown | None = None,
        necks: Necks = NO_NECKS,
    ) -> Losses:
        """See `Objective`; what the images show does not matter, nor do necks."""
        if self.standardisation is None and not self._padding:
            terms = self._terms(student, targets, valid, weights)
            return {LOSS: self._total(terms), **terms}
        raw, aims = student, targets
        if self.standardisation is not None:
            raw, aims = self.standardisation.restore(student.detach()), self.standardisation.standardise(targets)
        learnt = torch.ones_like(valid) if self._padding else valid
        total = self._total(self._terms(student, aims, learnt, weights))
        with torch.no_grad():
            return {LOSS: total, **self._terms(raw, targets, valid, weights)}

    def summarise(self, averages: Averages) -> Averages:
        """See `Objective`; adds `relative_mse`, the squared error as a share of the teacher's variance."""
        if not self._variance or "mse" not in averages:
            return averages
        return averages | {"relative_mse": averages["mse"] / self._variance}

    def raw(self, student: nn.Module) -> nn.Module:
        """See `Objective`."""
        return student if self.standardisation is None else _Restored(student, self.standardisation)

    def _terms(
        self, student: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor, weights: torch.Tensor
    ) -> Losses:
        count = weights.sum().clamp(min=1)
        return {name: (TERMS[name](student, targets, valid) * weights).sum() / count for name in self._weights}

    def _total(self, terms: Losses) -> torch.Tensor:
        return reduce(torch.add, (weight * terms[name] for name, weight in self._weights.items()))


class AddedObjective(ABC):
    """Another objective and, added to it, losses of what a frozen part of the teacher makes of the embeddings."""

    def __init__(
        self, other: Objective, standardisation: Standardisation | None, weight: float, shares: Mapping[str, float]
    ) -> None:
        """Set up.

        Args:
            other: what is minimised beside it.
            standardisation: what the student's output is standardised by, on the device of the features.
            weight: of the added losses together.
            shares: their own weights; `added` may give others, which are only recorded.
        """
        self._other = other
        self._standardisation = standardisation
        self._weight = weight
        self._shares = dict(shares)

    def __call__(
        self,
        student: torch.Tensor,
        targets: torch.Tensor,
        valid: torch.Tensor,
        weights: torch.Tensor,
        shown: Shown,
        necks: Necks = NO_NECKS,
    ) -> Losses:
        """See `Objective`. The added losses are recorded raw."""
        losses = self._other(student, targets, valid, weights, shown, necks)
        raw = student if self._standardisation is None else self._standardisation.restore(student)
        added = self.added(raw, targets, weights, shown, necks)
        weighted = reduce(torch.add, (share * added[name] for name, share in self._shares.items()))
        return {**losses, LOSS: losses[LOSS] + self._weight * weighted, **added}

    def summarise(self, averages: Averages) -> Averages:
        """See `Objective`."""
        return self._other.summarise(averages)

    def raw(self, student: nn.Module) -> nn.Module:
        """See `Objective`."""
        return self._other.raw(student)

    @abstractmethod
    def added(
        self,
        student: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        shown: Shown,
        necks: Necks = NO_NECKS,
    ) -> Losses:
        """The added losses alone.

        Args:
            student: (B, D, E, E) in the teacher's scale.
            targets: (B, D, E, E) the teacher's embeddings.
            weights: (B,) see `Objective`.
            shown: what the images show.
            necks: see `Objective`.
        """


class _Restored(nn.Module):
    """A student that gives standardised features, made to give raw ones."""

    def __init__(self, student: nn.Module, standardisation: Standardisation) -> None:
        super().__init__()
        self.student = student
        self.architecture = student.architecture
        self.training = student.training
        self._standardisation = standardisation

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """As the student, in raw features."""
        return self._standardisation.restore(self.student(pixel_values))


def masked_mse(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Squared error, averaged over channels and the valid cells of each image; see `Term` for the shapes."""
    return _masked_mean((student.float() - teacher.float()).square().mean(dim=1), valid)


def masked_cosine(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """1 - cosine similarity of the channel vectors, averaged over the valid cells of each image."""
    return _masked_mean(1 - F.cosine_similarity(student.float(), teacher.float(), dim=1), valid)


def masked_gradient(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Squared error of the differences between neighbouring cells, both valid, to the right and below.

    Averaged over channels and pairs; 0 for an image without a pair. What is wrong by the same amount everywhere costs
    nothing, edges at the wrong place cost most.
    """
    error = student.float() - teacher.float()
    total, pairs = torch.zeros_like(error[:, 0, 0, 0]), torch.zeros_like(error[:, 0, 0, 0])
    for dim in (-2, -1):
        both = valid.narrow(dim, 1, valid.shape[dim] - 1) & valid.narrow(dim, 0, valid.shape[dim] - 1)
        total = total + (error.diff(dim=dim).square().mean(dim=1) * both).sum(dim=(1, 2))
        pairs = pairs + both.sum(dim=(1, 2))
    return total / pairs.clamp(min=1)


def masked_edges(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Squared error in which a cell counts by how much the teacher's features change around it.

    A weight is the mean squared difference to the valid neighbours, on four sides, as a share of its mean over the
    image; where nothing changes, all cells count alike.
    """
    given = teacher.float()
    change, neighbours = torch.zeros_like(given[:, 0]), torch.zeros_like(given[:, 0])
    for dim in (-2, -1):
        side = valid.shape[dim]
        both = valid.narrow(dim, 1, side - 1) & valid.narrow(dim, 0, side - 1)
        steps = given.diff(dim=dim).square().mean(dim=1) * both
        for start in (0, 1):
            change.narrow(dim, start, side - 1).add_(steps)
            neighbours.narrow(dim, start, side - 1).add_(both)
    change = change / neighbours.clamp(min=1)
    mean = _masked_mean(change, valid)[:, None, None]
    weights = torch.where(mean > 0, change / mean.clamp(min=torch.finfo(change.dtype).tiny), 1.0)
    return _masked_mean(weights * (student.float() - given).square().mean(dim=1), valid)


def masked_multiscale(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Squared error of features averaged over squares of 2 and of 4 cells a side, the mean of both.

    Only valid cells are averaged, and a square counts by how many it has.
    """
    error, cells = student.float() - teacher.float(), valid[:, None].float()
    at_each = []
    for side in _POOLED_SIDES:
        share = F.avg_pool2d(cells, side, ceil_mode=True)  # [B, 1, E / side, E / side]
        pooled = F.avg_pool2d(error * cells, side, ceil_mode=True) / share.clamp(min=1 / side**2)
        at_each.append(_masked_mean(pooled.square().mean(dim=1), share[:, 0]))
    return torch.stack(at_each).mean(dim=0)


def masked_relation(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Squared error of the cosine similarities of every two cells, after Liu et al. 2019 (arXiv:1903.04197).

    Of cells at equal distances, 16 a side at most; averaged over pairs of valid ones, 0 for an image without any.
    """
    step = -(-valid.shape[-1] // _RELATED_SIDE)
    chosen = (..., slice(step // 2, None, step), slice(step // 2, None, step))
    here = valid[chosen].flatten(1).float()  # [B, N]
    own, given = (F.normalize(each[chosen].float().flatten(2), dim=1) for each in (student, teacher))  # [B, D, N]
    difference = own.transpose(1, 2) @ own - given.transpose(1, 2) @ given  # [B, N, N]
    pairs = here[:, :, None] * here[:, None]
    return (difference.square() * pairs).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)


def masked_attention(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Squared distance of the two maps of energy, the sum of squares over channels, each at unit length.

    After Zagoruyko and Komodakis 2017 (arXiv:1612.03928); between 0 and 2.
    """
    own, given = (F.normalize((each.float().square().sum(dim=1) * valid).flatten(1)) for each in (student, teacher))
    return (own - given).square().sum(dim=1)


def _masked_mean(per_cell: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    return (per_cell * valid).sum(dim=(1, 2)) / valid.sum(dim=(1, 2))


# The weights of the first two have keys of their own: DISTILL.PIXEL_WISE and DISTILL.COSINE.
TERMS: dict[str, Term] = {
    "mse": masked_mse,
    "cosine": masked_cosine,
    "gradient": masked_gradient,
    "edges": masked_edges,
    "multiscale": masked_multiscale,
    "relation": masked_relation,
    "attention": masked_attention,
}
