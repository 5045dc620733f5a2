"""How well a text student reproduces the teacher's token features, beside two baselines that know no context."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cosine_similarity

from efficientsam3.models.text_student_files import load_text_student
from efficientsam3.models.text_students import VOCABULARY
from efficientsam3.models.text_tokens import valid_tokens
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.train.phrase_plan import Phrases, open_phrases
from efficientsam3.train.phrases import PhraseDataset

BATCH = 64
_PRIOR = 1.0  # how many tokens like the mean of its position each token of the bag is seen with beforehand
Predict = Callable[[torch.Tensor], torch.Tensor]  # token ids (B, L) to features (B, L, D)


@dataclass(frozen=True)
class PhraseScores:
    """Cosine similarity with the teacher, averaged over the valid tokens of each phrase, then over phrases."""

    name: str
    phrases: int
    mean: float
    by_length: dict[int, tuple[int, float]]  # number of tokens, start and end included -> phrases, their mean


@torch.inference_mode()
def evaluate_phrases(student: Path, folder: Path, store: Path, device: torch.device) -> list[PhraseScores]:
    """Measure a student and two baselines on the validation phrases.

    The baselines know the training phrases' features: one gives the mean of each position, the other adds to it each
    token's own mean difference from that (towards none for tokens that are seen rarely). Neither knows the other words.

    Args:
        student: a training checkpoint.
        folder: has `train.txt` and `val.txt`.
        store: has the teacher's features of both.
        device: to compute on.

    Raises:
        UserError: an input is missing, or the student was trained for other features than the store has.
    """
    model = load_text_student(student)
    found = open_phrases(folder, store, model.architecture.padding)
    found.check_fits(model.architecture, student)
    model = model.to(device)
    positions, bag = _baselines(found.train, found.store)
    ways: dict[str, Predict] = {
        "student": lambda ids: model(ids.to(device))[:, :, 0].transpose(1, 2).cpu(),
        "mean of each position": lambda ids: positions.expand(len(ids), -1, -1),
        "bag of tokens": lambda ids: positions + bag[ids],
    }
    return [_score(name, predict, found) for name, predict in ways.items()]


def _score(name: str, predict: Predict, found: Phrases) -> PhraseScores:
    lengths: list[int] = []
    cosines: list[float] = []
    for ids, features, valid in _batches(found.val, found.store):
        each = cosine_similarity(predict(ids).float(), features, dim=-1) * valid  # [B, L]
        lengths += valid.sum(1).tolist()
        cosines += (each.sum(1) / valid.sum(1)).tolist()
    by_length = {
        length: _mean([cosine for own, cosine in zip(lengths, cosines, strict=True) if own == length])
        for length in sorted(set(lengths))
    }
    return PhraseScores(name, *_mean(cosines), by_length)


def _mean(values: Sequence[float]) -> tuple[int, float]:
    return len(values), sum(values) / max(1, len(values))


def _baselines(train: PhraseDataset, store: EmbeddingStore) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of each position (L, D), and each token's mean difference from it (vocabulary, D)."""
    length, width = store.manifest.embed_size, store.manifest.embed_dim
    sums, counts = torch.zeros(length, width), torch.zeros(length, 1)
    for _, features, valid in _batches(train, store):
        sums += (features * valid[..., None]).sum(0)
        counts += valid.sum(0)[:, None]
    positions = sums / counts.clamp(min=1)
    bag, seen = torch.zeros(VOCABULARY, width), torch.full((VOCABULARY, 1), _PRIOR)
    for ids, features, valid in _batches(train, store):
        bag.index_add_(0, ids[valid], (features - positions)[valid])
        seen.index_add_(0, ids[valid], torch.ones(int(valid.sum()), 1))
    return positions, bag / seen


def _batches(
    dataset: PhraseDataset, store: EmbeddingStore
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Token ids (B, L) int64, the teacher's features (B, L, D) float32, and valid tokens (B, L) bool."""
    for start in range(0, len(dataset), BATCH):
        ids, rows = dataset.ids[start : start + BATCH], dataset.rows[start : start + BATCH]
        _, grids = store.decode(torch.stack([store.read(int(row)) for row in rows]))
        yield ids, grids[:, :, 0].transpose(1, 2), valid_tokens(ids)
