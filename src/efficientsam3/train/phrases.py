"""Training on phrases: their batches, the order of their words, and what is minimised.

A phrase stands where an image does elsewhere: its tokens are the pixels, its features a grid of one row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.data import Dataset

from efficientsam3.data.loader import PADDING, Collate, ImageBatch, ImageSample, collate_images
from efficientsam3.models.text_students import END, VOCABULARY, TextArchitecture
from efficientsam3.models.text_tokens import valid_tokens
from efficientsam3.runtime.errors import UserError
from efficientsam3.train.batches import TrainBatch
from efficientsam3.train.loop import Trainer
from efficientsam3.train.objective import LOSS, NO_NECKS, Averages, FeatureObjective, Losses, Necks
from efficientsam3.train.plan import TrainPlan
from efficientsam3.train.prompts import Shown

_START = END - 1
_WORD_END = "</w>"  # how the last token of a word ends in CLIP's vocabulary


class PhraseDataset(Dataset[ImageSample | None]):
    """Phrases with their tokens; those that fit and have features in the store."""

    def __init__(
        self, phrases: Sequence[str], ids: torch.Tensor, rows: npt.NDArray[np.int64], places: npt.NDArray[np.intp]
    ) -> None:
        """Select phrases.

        Args:
            phrases: N of them.
            ids: (N, L) int64, their tokens.
            rows: (N,) rows of their features in the store.
            places: which of them to take.
        """
        self.phrases = [phrases[place] for place in places]
        self.ids = ids[torch.from_numpy(places)]
        self.rows = rows[places]
        self.without = len(phrases) - len(places)

    def __len__(self) -> int:
        return len(self.phrases)

    def __getitem__(self, item: int) -> ImageSample | None:
        if item == PADDING:
            return None
        length = int(valid_tokens(self.ids[item : item + 1]).sum())
        return ImageSample(self.phrases[item], self.ids[item], (1, length), 0, int(self.rows[item]))


@dataclass(frozen=True)
class PhraseCollate:
    """Stacks phrases, with a stand-in if there is none: under DDP every process must take every step."""

    context_length: int

    def __call__(self, samples: list[ImageSample | UserError | None]) -> ImageBatch:
        """A batch whose `pixels` are token ids (B, L) int64, and whose `content_sizes` are 1 and the tokens' number."""
        if not any(isinstance(sample, ImageSample) for sample in samples):
            ids = torch.full((self.context_length,), END)
            ids[0] = _START
            samples = [*samples, ImageSample("", ids, (1, 2), 0)]
        return collate_images(samples)


@dataclass(frozen=True)
class PhrasePlan(TrainPlan):
    """A `TrainPlan` whose images are phrases."""

    items: ClassVar[str] = "phrases"
    embedded_by: ClassVar[str] = "efficientsam3 text embed"
    train: PhraseDataset  # type: ignore[assignment]  # phrases in the place of images
    val: PhraseDataset  # type: ignore[assignment]
    architecture: TextArchitecture  # type: ignore[assignment]
    shuffle: float = field(kw_only=True)  # weight of the consistency with words in another order
    word_ends: torch.Tensor = field(kw_only=True)  # (vocabulary,) bool, see `word_ends`

    @property
    def collate(self) -> Collate:
        """What makes batches of the datasets' items; they are never empty."""
        return PhraseCollate(self.architecture.context_length)


def word_ends(tokenizer: Any) -> torch.Tensor:
    """(vocabulary,) bool: which tokens end a word."""
    ends = torch.zeros(VOCABULARY, dtype=torch.bool)
    for token, number in tokenizer.get_vocab().items():
        ends[number] = token.endswith(_WORD_END)
    return ends


def shuffle_words(ids: torch.Tensor, lengths: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Phrases with their words in another order, drawn by PyTorch's global random numbers.

    Args:
        ids: (B, L) int64, start and end included.
        lengths: (B,) how many tokens each phrase has.
        ends: see `word_ends`, on the same device.

    Returns:
        (B, L) int64: the words' tokens stay together, and start, end and padding stay where they are.
    """
    count, length = ids.shape
    places = torch.arange(length, device=ids.device)
    inside = (places > 0) & (places < lengths[:, None] - 1)
    last = ends[ids] & inside
    word = (last.long().cumsum(1) - last.long()).clamp(min=0)  # [B, L], the word that a token is of
    drawn = torch.rand(count, length, device=ids.device).gather(1, word)
    # Start first, then the words as drawn, then the end and what is behind it; a stable order keeps the rest.
    keys = torch.where(inside, drawn, torch.where(places == 0, -1.0, 2.0))
    return ids.gather(1, torch.argsort(keys, dim=1, stable=True))


class PhraseObjective:
    """A `FeatureObjective` over tokens, and the consistency with words in another order where those are given, too."""

    def __init__(self, tokens: FeatureObjective, weight: float) -> None:
        """Minimise `tokens`, and `weight` times the consistency."""
        self._tokens = tokens
        self._weight = weight

    def __call__(
        self,
        student: torch.Tensor,
        targets: torch.Tensor,
        valid: torch.Tensor,
        weights: torch.Tensor,
        shown: Shown,
        necks: Necks = NO_NECKS,
    ) -> Losses:
        """See `Objective`; `student` is (B, D, 1, L), or (2B, D, 1, L) with the same phrases shuffled behind them."""
        count = len(targets)
        losses = self._tokens(student[:count], targets, valid, weights, shown)
        if len(student) == count:
            return losses
        one, other = (_mean_features(part, valid) for part in (student[:count], student[count:]))
        each = (one - other).square().mean(dim=1)
        consistency = (each * weights).sum() / weights.sum().clamp(min=1)
        return {**losses, LOSS: losses[LOSS] + self._weight * consistency, "shuffle": consistency}

    def summarise(self, averages: Averages) -> Averages:
        """See `Objective`."""
        return self._tokens.summarise(averages)

    def raw(self, student: nn.Module) -> nn.Module:
        """See `Objective`."""
        return student


def _mean_features(features: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """(B, D, 1, L) to (B, D) float32, over valid tokens."""
    return (features.float() * valid[:, None]).sum(dim=(2, 3)) / valid.sum(dim=(1, 2))[:, None]


class PhraseTrainer(Trainer):
    """A `Trainer` whose batches are phrases."""

    items = "phrases"

    def __init__(self, plan: PhrasePlan, model: nn.Module, *others: Any, **named: Any) -> None:
        """See `Trainer`; `plan` says whether and how words are shuffled."""
        super().__init__(model, *others, **named)
        self._shuffles = plan.shuffle > 0
        self._word_ends = plan.word_ends.to(self._process.device)

    def _inputs(self, model: nn.Module, batch: TrainBatch) -> torch.Tensor:
        """Token ids (B, L), in training followed by the same phrases shuffled."""
        ids = batch.pixels
        if not (self._shuffles and model.training):
            return ids
        return torch.cat([ids, shuffle_words(ids, batch.content_sizes[:, 1], self._word_ends)])

    def _valid(self, batch: TrainBatch) -> torch.Tensor:
        """(B, 1, L) bool: start, words and end."""
        places = torch.arange(batch.pixels.shape[1], device=batch.pixels.device)
        return (places < batch.content_sizes[:, 1:])[:, None]
