"""The most instructive objects of an evaluation, kept while everything else passes by."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from efficientsam3.data.annotations.rle import Rle
from efficientsam3.evaluate.masks.ground_truth import TrueImage
from efficientsam3.evaluate.masks.objects import PromptKind, TrueObject
from efficientsam3.evaluate.masks.scores import ObjectScore
from efficientsam3.evaluate.masks.segmenters import to_rle
from efficientsam3.sam3.prompts import Prompt


@dataclass(frozen=True)
class Example:
    """One object with every model's mask."""

    image: Path
    image_id: str
    true: Rle
    prompt: Prompt
    masks: tuple[Rle, ...]
    scores: tuple[ObjectScore, ...]


# Group's title to rank, by the first model's score and that of the one shown: the higher, the more an object belongs.
_ALONE: dict[str, Callable[[ObjectScore, ObjectScore], float]] = {
    "Best of {shown}": lambda first, shown: shown.iou,
    "Worst of {shown}": lambda first, shown: -shown.iou,
}
_COMPARED: dict[str, Callable[[ObjectScore, ObjectScore], float]] = {
    **_ALONE,
    "{shown} furthest behind {first}": lambda first, shown: first.iou - shown.iou,
}
# Of equals, the larger object comes first: it shows more.
Rank = tuple[float, int]


class Gallery:
    """Keeps, for each prompt and group, the objects of highest rank, one of an image at most."""

    def __init__(self, size: int = 4, shown: int = -1) -> None:
        """Keep `size` objects in each group, by the masks of the model at place `shown`."""
        self._size, self._shown = size, shown
        self.first_images: dict[str, TrueImage] = {}  # by id, the first `size`
        self._kept: dict[tuple[PromptKind, str], dict[str, tuple[Rank, Example]]] = {}

    def __call__(
        self,
        image: TrueImage,
        thing: TrueObject,
        masks: list[torch.Tensor],
        scores: list[ObjectScore],
        prompts: list[Prompt],
    ) -> None:
        """See `measure.Observer`."""
        if len(self.first_images) < self._size:
            self.first_images[image.image_id] = image
        kind = scores[0].prompt
        first, shown = scores[0], scores[self._shown]
        for pattern, value in (_ALONE if shown is first else _COMPARED).items():
            title = pattern.format(first=first.model, shown=shown.model)
            kept, rank = self._kept.setdefault((kind, title), {}), (value(first, shown), thing.rle.area)
            if not self._belongs(kept, image.image_id, rank):
                continue
            rles = tuple(to_rle(mask) for mask in masks)
            kept[image.image_id] = (
                rank,
                Example(image.path, image.image_id, thing.rle, prompts[self._shown], rles, tuple(scores)),
            )
            if len(kept) > self._size:
                del kept[min(kept, key=lambda image_id: kept[image_id][0])]

    def groups(self) -> dict[tuple[PromptKind, str], list[Example]]:
        """By prompt and group's title, those of highest rank first."""
        return {
            key: [example for _, example in sorted(kept.values(), key=lambda pair: pair[0], reverse=True)]
            for key, kept in self._kept.items()
        }

    def _belongs(self, kept: dict[str, tuple[Rank, Example]], image_id: str, rank: Rank) -> bool:
        if image_id in kept:
            return rank > kept[image_id][0]
        return len(kept) < self._size or rank > min(pair[0] for pair in kept.values())
