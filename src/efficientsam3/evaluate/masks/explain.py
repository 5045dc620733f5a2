"""The distance from a student to its teacher, explained: what each part of the features carries of it.

A part of the teacher's features is put in the place of the student's, and of the student's in the place of the
teacher's; the masks of both mixtures are measured like any model's. What the first gains and the second loses, in the
mean and over the gap, is the share that the part carries. Parts interact, so that shares need not add up to 100 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from efficientsam3.evaluate.masks.comparison import interval, means_of
from efficientsam3.evaluate.masks.ground_truth import GroundTruth, Selection
from efficientsam3.evaluate.masks.measure import measure
from efficientsam3.evaluate.masks.mixtures import CHANNELS, Mixture, Pair
from efficientsam3.evaluate.masks.objects import PromptKind
from efficientsam3.evaluate.masks.parts import Statistics
from efficientsam3.evaluate.masks.scores import Interval, ObjectScore

GROUPS = 4


@dataclass(frozen=True)
class Gap:
    """How far the student is behind, by one kind of prompt."""

    prompt: PromptKind
    teacher: float  # mIoU
    student: float
    interval: Interval | None  # of the difference


@dataclass(frozen=True)
class PartOfGap:
    """What one part of the features carries."""

    prompt: PromptKind
    family: str  # whose parts, exchanged together, turn one model into the other
    part: str
    repaired: float  # mIoU of the student with this part of the teacher's
    damaged: float  # mIoU of the teacher with this part of the student's
    share: float | None  # of the gap; None where there is none
    interval: Interval | None
    error: float | None  # its share of the squared difference of the embeddings, where it is a part of them


@dataclass(frozen=True)
class Explanation:
    """The gaps and what carries them."""

    teacher: str
    student: str
    gaps: list[Gap]
    parts: list[PartOfGap]  # by prompt, then by family
    channel_groups: list[list[int]]  # those of the largest error first


def explain(
    pair: Pair,
    truth: GroundTruth,
    prompts: Sequence[PromptKind],
    selection: Selection,
    scores: Sequence[ObjectScore],
    groups: int = GROUPS,
) -> Explanation:
    """Exchange every part, both ways, and measure the masks.

    Args:
        pair: teacher and student.
        truth: as measured.
        prompts: those for objects.
        selection: as measured.
        scores: of teacher and student alone, for the same selection.
        groups: how many groups of channels.

    Raises:
        UserError: the embeddings have different shapes; see `measure`.
    """
    names = [pair.teacher.name, pair.student.name]
    own = [score for score in scores if score.model in names and score.prompt in prompts]
    image_ids = list(dict.fromkeys(score.image_id for score in own))
    statistics = Statistics.of(pair.cells(image_ids))
    channel_groups = statistics.channel_groups(groups)
    parts = pair.parts(statistics, channel_groups, image_ids[0])
    mixtures = [
        # The line break keeps its name apart from those that users give.
        Mixture(f"{number}\n{repair:d}", pair, part, repair)
        for number, part in enumerate(parts)
        for repair in (True, False)
    ]
    mixed = measure(mixtures, truth, prompts, selection).scores
    errors = [mixture.error for mixture in mixtures[::2]]
    whole = sum(error for part, error in zip(parts, errors, strict=True) if part.family == CHANNELS)
    everything, models = [*own, *mixed], [*names, *(mixture.name for mixture in mixtures)]
    gaps: list[Gap] = []
    found: list[PartOfGap] = []
    for prompt in prompts:
        means, drawn = means_of(everything, models, prompt, selection.seed)
        gap, drawn_gap = float(means[0] - means[1]), drawn[0] - drawn[1]
        gaps.append(Gap(prompt, float(means[0]), float(means[1]), interval(drawn_gap)))
        for number, part in enumerate(parts):
            repaired, damaged = means[2 + 2 * number : 4 + 2 * number].tolist()
            carried = (drawn[2 + 2 * number] - drawn[1] + drawn[0] - drawn[3 + 2 * number]) / 2
            share = (repaired - means[1] + means[0] - damaged) / 2 / gap if gap > 0 else None
            sure = interval(carried / drawn_gap) if (drawn_gap > 0).all() else None
            error = errors[number] / whole if part.share is not None and whole > 0 else None
            found.append(PartOfGap(prompt, part.family, part.name, repaired, damaged, share, sure, error))
    return Explanation(names[0], names[1], gaps, found, channel_groups)


def conclusions(explanation: Explanation) -> list[str]:
    """A sentence for each prompt: how large the gap is, and which part of each family carries most of it."""
    sentences = []
    for gap in explanation.gaps:
        ahead = gap.teacher - gap.student
        start = f"By {gap.prompt}, {explanation.student} has {gap.student:.3f} where {explanation.teacher} has "
        if ahead <= 0:
            sentences.append(f"{start}{gap.teacher:.3f}: there is no gap to explain.")
            continue
        families: dict[str, list[PartOfGap]] = {}
        for part in explanation.parts:
            if part.prompt == gap.prompt:
                families.setdefault(part.family, []).append(part)
        largest = [max(parts, key=lambda part: part.share or 0.0) for parts in families.values()]
        carried = "; ".join(f"{part.family}: {part.part}, {100 * (part.share or 0):.0f} %" for part in largest)
        sentences.append(f"{start}{gap.teacher:.3f}. Of the {ahead:.3f} between them most is in {carried}.")
    return sentences
