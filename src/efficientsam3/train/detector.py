"""SAM3's detector in the loop: what it finds by text and by example in the student's embeddings, against the teacher's.

The targets are the teacher's soft answers. A query of the student need not find what the same query of the teacher
finds, so queries are matched as in DETR (https://arxiv.org/abs/2005.12872): one to one, at the least cost. Each loss is
0 where student and teacher answer alike, in whatever order.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.ops import generalized_box_iou, generalized_box_iou_loss
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from efficientsam3.checkpoints.necks import LEVELS_READ
from efficientsam3.checkpoints.standardisation import Standardisation
from efficientsam3.data.preprocess import build_valid_mask
from efficientsam3.sam3.detector import Concepts, Detections, Detector
from efficientsam3.sam3.parts import VISUAL_PROMPT
from efficientsam3.sam3.promptable import PADDING_LABEL
from efficientsam3.train.concepts import draw_phrases
from efficientsam3.train.levels import compare_levels
from efficientsam3.train.masks import answer_of, soft_mask_losses
from efficientsam3.train.objective import NO_NECKS, AddedObjective, Losses, Necks, Objective
from efficientsam3.train.prompts import Shown, draw_prompts

LEVELS = "detector_levels"
_NAMES = ("detector_mask", "detector_box", "detector_score", "detector_presence")
Costs = npt.NDArray[np.floating]
_IMPOSSIBLE = 1e6  # the cost in place of one that is not finite, which the assignment would not take


@dataclass(frozen=True)
class DetectorSettings:
    """How the detector is asked, and its answers weighted; the keys of DISTILL.DETECTOR, see `DetectorConfig`."""

    text: int
    visual: int
    threshold: float
    at_once: int
    weight: float
    mask: float
    box: float
    score: float
    presence: float
    levels: float = 0.0

    @property
    def asks(self) -> bool:
        """Whether the detector is asked."""
        return max(self.mask, self.box, self.score, self.presence) > 0 or not self.levels


class DetectorObjective(AddedObjective):
    """Another objective and, added to it, that of the detector's answers.

    The figures are those of `compare_detections`, as means over images and prompts, and `detector_levels`, the
    difference of what the detector reads.
    """

    def __init__(
        self,
        other: Objective,
        standardisation: Standardisation | None,
        detector: Detector,
        phrases: tuple[str, ...],
        settings: DetectorSettings,
        seed: int,
    ) -> None:
        """Set up.

        Args:
            other: what is minimised beside it.
            standardisation: what the student's output is standardised by, on the device of the features.
            detector: frozen, on that device too.
            phrases: what it is asked by text.
            settings: how it is asked, and its answers weighted.
            seed: draws the prompts, with the epoch and each image's id.
        """
        detector.encode_phrases()
        weights = (settings.mask, settings.box, settings.score, settings.presence)
        shares = dict(zip(_NAMES, weights, strict=True)) if settings.asks else {}
        shares |= {LEVELS: settings.levels} if settings.levels else {}
        super().__init__(other, standardisation, settings.weight, shares)
        self._detector = detector
        self._phrases = phrases
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
        settings, detector = self._settings, self._detector
        own = detector.features(student.to(detector.dtype), necks.get("detector"))
        with torch.no_grad():
            teacher = detector.features(targets.to(detector.dtype))
        found: Losses = {}
        if settings.asks:
            found = self._asked(own, teacher, weights, shown)
        if settings.levels:
            mine, wanted = (features.fpn_hidden_states[:LEVELS_READ] for features in (own, teacher))
            size = detector.preprocessing.image_size
            found[LEVELS] = compare_levels(mine, wanted, shown.content_sizes, size, weights)
        return found

    def _asked(
        self, own: Sam3VisionEncoderOutput, teacher: Sam3VisionEncoderOutput, weights: torch.Tensor, shown: Shown
    ) -> Losses:
        """The losses of the answers to prompts."""
        settings, detector = self._settings, self._detector
        dtype, device = detector.dtype, weights.device
        valid = build_valid_mask(shown.content_sizes, detector.preprocessing.image_size, 4 * detector.embed_size)
        shares = weights / weights.sum().clamp(min=1) / (settings.text + settings.visual)
        concepts = self._concepts(shown, dtype)
        most = settings.at_once or len(concepts.images)
        recomputes = len(concepts.images) > most
        total = torch.zeros(len(_NAMES), dtype=dtype, device=device)
        for part in concepts.parts(most):
            with torch.no_grad():
                wanted = detector(teacher, part)
            found = answer_of(partial(detector, own, part), recomputes)
            figures = compare_detections(found, wanted, valid[part.images], settings.threshold)
            total = total + (figures * shares[part.images, None]).sum(0)
        return dict(zip(_NAMES, total.float().unbind(), strict=True))

    def _concepts(self, shown: Shown, dtype: torch.dtype) -> Concepts:
        """The prompts of a batch, those by text first."""
        settings, device = self._settings, shown.content_sizes.device
        drawn = draw_phrases(shown, self._phrases, settings.text, self._seed)
        texts = [phrase for phrases in drawn for phrase in phrases]
        shown_in, edges, *_ = draw_prompts(shown, settings.visual, 0, self._seed).placed(shown.content_sizes)
        edges = (edges / self._detector.preprocessing.image_size).to(dtype)
        low, high = edges[:, :2], edges[:, 2:]
        phrases = self._detector.places([*texts, *[VISUAL_PROMPT] * len(edges)])
        labels = [PADDING_LABEL] * len(texts) + [1] * len(edges)
        return Concepts(
            torch.cat([torch.arange(len(drawn), device=device).repeat_interleave(settings.text), shown_in]),
            torch.tensor(phrases, device=device),
            torch.cat([edges.new_zeros(len(texts), 4), torch.cat([(low + high) / 2, high - low], dim=1)]),
            torch.tensor(labels, device=device),
        )


def compare_detections(own: Detections, teacher: Detections, valid: torch.Tensor, threshold: float) -> torch.Tensor:
    """How far answers are from the teacher's, of each prompt (P, 4): masks, boxes, scores, presence.

    Masks: cross-entropy with the soft mask above its smallest value, and Dice. Boxes: the coordinates' differences,
    added up, in sides of the input, and 1 - GIoU (https://arxiv.org/abs/1902.09630). Both are averaged over what the
    teacher finds, and 0 where that is nothing. Scores: cross-entropy above its smallest value, averaged over what it
    finds, and over all the rest. Presence: the same of the one probability.

    Args:
        own: the student's.
        teacher: without gradients.
        valid: (P, h, w) bool: where masks are compared.
        threshold: the teacher finds what its score is above.
    """
    there = teacher.scores > threshold
    partners = match(own, teacher, there, valid)
    scores = _cross_entropy(own.logits.gather(1, partners), teacher.logits)
    of_found, of_rest = ((scores * chosen).sum(1) / chosen.sum(1).clamp(min=1) for chosen in (there, ~there))
    prompts, queries = there.nonzero(as_tuple=True)
    mine = partners[prompts, queries]
    bce, dice = soft_mask_losses(own.masks[prompts, mine], teacher.masks[prompts, queries], valid[prompts])
    boxes, wanted = own.boxes[prompts, mine], teacher.boxes[prompts, queries]
    side = valid.shape[-1]  # so that the small number which keeps areas from 0 is small beside a box
    giou = generalized_box_iou_loss(boxes * side, wanted * side)
    each = torch.stack([bce + dice, (boxes - wanted).abs().sum(1) + giou], dim=1) / there.sum(1)[prompts, None]
    found = each.new_zeros(len(there), 2).index_add(0, prompts, each)
    presence = _cross_entropy(own.presence, teacher.presence)
    return torch.cat([found, (of_found + of_rest)[:, None], presence[:, None]], dim=1)


def _cross_entropy(own: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """With the teacher's probabilities, above their own entropy; of logits of any one shape."""
    wanted = teacher.sigmoid()
    entropies = [binary_cross_entropy_with_logits(logits, wanted, reduction="none") for logits in (own, teacher)]
    return entropies[0] - entropies[1]


@torch.no_grad()
def match(own: Detections, teacher: Detections, there: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """The student's query (P, Q) int64 for each of the teacher's.

    What the teacher finds chooses first, at the least sum of differences of score, box and mask; the rest is matched by
    score and box.

    Args:
        own: the student's answers.
        teacher: the teacher's.
        there: (P, Q) bool: what the teacher finds.
        valid: (P, h, w) bool: where masks are compared.
    """
    scores = (own.logits.sigmoid()[:, None] - teacher.logits.sigmoid()[:, :, None]).abs()
    costs = _on_host(scores + torch.cdist(teacher.boxes, own.boxes, p=1))  # [P, teacher's Q, student's Q]
    partners = []
    for prompt, (cost, chosen) in enumerate(zip(costs, there.cpu().numpy(), strict=True)):
        finer = cost[chosen]
        if chosen.any():
            wanted, found = ((answers.masks[prompt].sigmoid() * valid[prompt]).flatten(1) for answers in (teacher, own))
            wanted = wanted[there[prompt]]
            sizes = wanted.square().sum(1)[:, None] + found.square().sum(1)
            dice = 1 - (2 * wanted @ found.T + 1) / (sizes + 1)
            giou = generalized_box_iou(teacher.boxes[prompt, there[prompt]], own.boxes[prompt])
            finer = finer + _on_host(dice - giou)
        partners.append(_assign(cost, finer, chosen))
    return torch.from_numpy(np.stack(partners)).to(there.device)


def _on_host(costs: torch.Tensor) -> Costs:
    return costs.nan_to_num(_IMPOSSIBLE, _IMPOSSIBLE, _IMPOSSIBLE).cpu().numpy()


def _assign(costs: Costs, finer: Costs, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """The columns of all rows: the chosen rows', which have finer costs, and then the others' among what is left."""
    partners = np.empty(len(costs), dtype=np.intp)
    partners[chosen] = linear_sum_assignment(finer)[1]
    left = np.setdiff1d(np.arange(len(costs)), partners[chosen])
    partners[~chosen] = left[linear_sum_assignment(costs[~chosen][:, left])[1]]
    return partners
