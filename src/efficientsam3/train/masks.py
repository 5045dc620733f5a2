"""The decoder in the loop: the masks that a frozen predictor makes of the student's embeddings, against the teacher's.

After EdgeSAM (https://arxiv.org/abs/2312.06660), with the teacher's soft answers in all candidate masks and their
predicted IoUs as targets. Each loss is 0, with a gradient of 0, where student and teacher answer alike.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.checkpoint import checkpoint

from efficientsam3.data.preprocess import build_valid_mask
from efficientsam3.sam3.predictor import Candidates, Predictor, Prompts
from efficientsam3.train.levels import compare_levels
from efficientsam3.train.objective import NO_NECKS, AddedObjective, FeatureObjective, Losses, Necks
from efficientsam3.train.prompts import DrawnPrompts, Shown, draw_prompts

LEVELS = "mask_levels"
_NAMES = ("mask_bce", "mask_dice", "mask_iou", "mask_agreement")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class MaskSettings:
    """How masks are asked for and weighted; the keys of DISTILL.MASKS, whose meaning `MasksConfig` describes."""

    prompts: int
    rounds: int
    at_once: int
    weight: float
    bce: float
    dice: float
    iou: float
    levels: float = 0.0

    @property
    def asks(self) -> bool:
        """Whether masks are asked for."""
        return max(self.bce, self.dice, self.iou) > 0 or not self.levels


class MaskObjective(AddedObjective):
    """The features' objective and, added to it, that of the masks, each figure a mean over images, prompts and rounds.

    `mask_bce` is the cross-entropy above the teacher's own entropy, `mask_agreement` the IoU of the two masks that the
    teacher ranks first, `mask_levels` the difference of what SAM3's decoder reads.
    """

    def __init__(self, features: FeatureObjective, predictor: Predictor, settings: MaskSettings, seed: int) -> None:
        """Set up.

        Args:
            features: whose standardisation the student's output has.
            predictor: frozen, on the device of the features.
            settings: how masks are asked for and weighted.
            seed: draws the prompts, with the epoch and each image's id.
        """
        shares = {"mask_bce": settings.bce, "mask_dice": settings.dice, "mask_iou": settings.iou}
        shares = shares if settings.asks else {}
        shares |= {LEVELS: settings.levels} if settings.levels else {}
        super().__init__(features, features.standardisation, settings.weight, shares)
        self._predictor = predictor
        self._settings = settings
        self._seed = seed

    def added(
        self,
        student: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        shown: Shown,
        necks: Necks = NO_NECKS,
    ) -> Losses:
        """See `AddedObjective`."""
        settings = self._settings
        dtype = next(self._predictor.parameters()).dtype
        with torch.no_grad():
            teacher = self._predictor.features(targets.to(dtype))
        own = self._predictor.features(student.to(dtype), necks.get("tracker"))
        found: Losses = {}
        if settings.asks:
            found = self._asked(own, teacher, weights, shown)
        if settings.levels:
            size = self._predictor.preprocessing.image_size
            found[LEVELS] = compare_levels(own, teacher, shown.content_sizes, size, weights)
        return found

    def _asked(
        self, own: list[torch.Tensor], teacher: list[torch.Tensor], weights: torch.Tensor, shown: Shown
    ) -> Losses:
        """The losses of the answers to prompts."""
        settings, dtype, device = self._settings, own[-1].dtype, own[-1].device
        drawn = draw_prompts(shown, settings.prompts, settings.rounds, self._seed).sorted()
        size, grid = self._predictor.preprocessing.image_size, 4 * self._predictor.embed_size
        scene = _Scene(
            self._predictor,
            student=own,
            teacher=teacher,
            valid=build_valid_mask(shown.content_sizes, size, grid),
            cell=size / grid,
            recomputes=len(drawn.images) > settings.at_once > 0,
        )
        shares = weights / weights.sum().clamp(min=1) / (settings.prompts * (1 + settings.rounds))
        total = torch.zeros(len(_NAMES), dtype=dtype, device=device)
        for prompts, chances in scene.asked(drawn, shown.content_sizes, settings.at_once):
            for figures in scene.rounds(prompts, chances):
                total = total + (figures * shares[prompts.images, None]).sum(0)
        return dict(zip(_NAMES, total.float().unbind(), strict=True))


def _boxes(images: torch.Tensor, boxes: torch.Tensor) -> Prompts:
    nothing = boxes.new_zeros(len(boxes), 0, 2)
    return Prompts(images, nothing, nothing[..., 0].long(), boxes)


def _points(images: torch.Tensor, points: torch.Tensor) -> Prompts:
    """Points on their objects, each a prompt."""
    return Prompts(images, points[:, None], images.new_ones(len(images), 1))


@dataclass(frozen=True)
class _Scene:
    """The images of a batch as student and teacher see them."""

    predictor: Predictor
    student: list[torch.Tensor]  # see `Predictor.features`
    teacher: list[torch.Tensor]
    valid: torch.Tensor  # (B, h, h) bool: which pixels of the masks show the image
    cell: float  # pixels of the input for each of the masks'
    recomputes: bool  # whether the student's answers are computed again in the backward pass, to save memory

    def asked(
        self, drawn: DrawnPrompts, content_sizes: torch.Tensor, at_once: int
    ) -> Iterator[tuple[Prompts, torch.Tensor]]:
        """The drawn prompts, of one kind and at most `at_once` together, with their chances (rounds, P).

        Where no object is known, a box is around the teacher's best mask at the point; around the grid's cell where
        that mask is empty.
        """
        images, boxes, points, chances = drawn.placed(content_sizes)
        dtype = self.teacher[-1].dtype
        boxes, points = boxes.to(dtype), points.to(dtype)
        if of_grids := int((drawn.is_box & drawn.is_share).sum()):
            found = self._boxes_at(_points(images[:of_grids], points[:of_grids]), boxes[:of_grids])
            boxes = torch.cat([found, boxes[of_grids:]])
        count, boxed = len(images), int(drawn.is_box.sum())
        most = at_once or count
        for start in (*range(0, boxed, most), *range(boxed, count, most)):
            part = slice(start, min(start + most, boxed if start < boxed else count))
            prompts = _boxes(images[part], boxes[part]) if start < boxed else _points(images[part], points[part])
            yield prompts, chances[:, part]

    @torch.no_grad()
    def _boxes_at(self, prompts: Prompts, otherwise: torch.Tensor) -> torch.Tensor:
        answer = self.predictor(self.teacher, prompts)
        mask = (_first(answer.logits, answer.ious) > 0) & self.valid[prompts.images]
        edges = []
        for axis in (1, 2):  # the columns, then the rows
            there = mask.any(axis).to(torch.uint8)
            edges.append(torch.stack([there.argmax(1), there.shape[1] - there.flip(1).argmax(1)], dim=1))
        found = torch.stack(edges, dim=2).flatten(1) * self.cell  # [N, 4] x0, y0, x1, y1
        return torch.where(mask.flatten(1).any(1, keepdim=True), found.to(otherwise.dtype), otherwise)

    def rounds(self, prompts: Prompts, chances: torch.Tensor) -> Iterator[torch.Tensor]:
        """The figures (P, 4) of the prompts, and of each refinement: a click where the two masks differ.

        Both get the student's mask with it, as it gets it from whoever clicks.
        """
        valid = self.valid[prompts.images]
        for chance in (*chances, None):
            with torch.no_grad():
                teacher = self.predictor(self.teacher, prompts)
            own = answer_of(partial(self.predictor, self.student, prompts), self.recomputes)
            yield compare(own, teacher, valid)
            if chance is not None:
                prompts = self._refine(prompts, own, teacher, chance)

    @torch.no_grad()
    def _refine(self, prompts: Prompts, own: Candidates, teacher: Candidates, chance: torch.Tensor) -> Prompts:
        student_mask, teacher_mask = (_first(answer.logits, teacher.ious) for answer in (own, teacher))
        valid = self.valid[prompts.images]
        inside = teacher_mask > 0
        wrong = (inside ^ (student_mask > 0)) & valid
        clickable = torch.where(wrong.flatten(1).any(1)[:, None, None], wrong, valid).flatten(1)
        counts = clickable.cumsum(1)
        nth = (chance * counts[:, -1]).long().clamp(max=counts[:, -1] - 1)
        pixel = torch.searchsorted(counts, nth[:, None] + 1)  # [P, 1] the first with so many up to it
        side = wrong.shape[2]
        middles = torch.cat([pixel % side, pixel // side], dim=1).to(prompts.points.dtype) + 0.5
        # Coordinates are of pixels, whose middle the prompt encoder takes.
        clicked = prompts.with_points(middles * self.cell - 0.5, inside.flatten(1).gather(1, pixel)[:, 0].long())
        return replace(clicked, masks=student_mask[:, None].detach())


def answer_of(ask: Callable[[], Answer], recomputes: bool) -> Answer:
    """What `ask` gives; where it `recomputes`, that is asked again in the backward pass, which saves memory."""
    if not (recomputes and torch.is_grad_enabled()):
        return ask()
    answer: Answer = checkpoint(ask, use_reentrant=False, preserve_rng_state=False)
    return answer


def _first(candidates: torch.Tensor, ious: torch.Tensor) -> torch.Tensor:
    """Of each prompt's candidates (P, M, h, w) the one with the highest predicted IoU (P, M)."""
    return candidates[torch.arange(len(candidates), device=candidates.device), ious.argmax(1)]


def compare(own: Candidates, teacher: Candidates, valid: torch.Tensor) -> torch.Tensor:
    """How far answers are from the teacher's: BCE, Dice, squared error of predicted IoUs, and agreement, as (P, 4).

    Args:
        own: the student's.
        teacher: without gradients.
        valid: (P, h, w) bool: where masks are compared.
    """
    bce, dice = soft_mask_losses(own.logits, teacher.logits, valid[:, None])
    with torch.no_grad():
        masks = [(_first(answer.logits, teacher.ious) > 0) & valid for answer in (own, teacher)]
        union = (masks[0] | masks[1]).sum((1, 2))
        agreement = torch.where(union > 0, (masks[0] & masks[1]).sum((1, 2)) / union.clamp(min=1), 1.0)
    terms = [bce, dice, (own.ious - teacher.ious).square()]
    return torch.stack([*(term.mean(1) for term in terms), agreement.to(dice.dtype)], dim=1)


def soft_mask_losses(
    own: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """BCE above its smallest value, and Dice, of each mask (...,), both 0 where the masks are alike.

    Args:
        own: (..., h, w) logits.
        teacher: (..., h, w) logits, without gradients.
        valid: (..., h, w) bool, or of a shape that broadcasts: where masks are compared.
    """
    area, wanted = valid.sum((-2, -1)), teacher.sigmoid()
    entropies = [
        (binary_cross_entropy_with_logits(logits, wanted, reduction="none") * valid).sum((-2, -1)) / area
        for logits in (own, teacher)
    ]
    found, wanted = own.sigmoid() * valid, wanted * valid
    # With squares (https://arxiv.org/abs/1606.04797), soft masks that are alike have no loss.
    overlap = 2 * (found * wanted).sum((-2, -1)) + 1
    dice = 1 - overlap / (found.square().sum((-2, -1)) + wanted.square().sum((-2, -1)) + 1)
    return entropies[0] - entropies[1], dice
