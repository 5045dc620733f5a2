"""Scores of masks: intersection over union, by object, in the mean, and by COCO's sizes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from efficientsam3.evaluate.masks.objects import PromptKind

# https://cocodataset.org/#detection-eval: areas in pixels of the image below which an object is small, or medium.
SMALL, MEDIUM = 32**2, 96**2
SIZES = ("small", "medium", "large")
Interval = tuple[float, float]  # of 95 %


@dataclass(frozen=True, slots=True)
class ObjectScore:
    """How one model answered one prompt for one object."""

    model: str
    image_id: str
    number: int  # of the object, see TrueObject
    prompt: PromptKind
    area: int  # pixels of the true mask
    iou: float  # with the true mask
    agreement: float  # IoU with the first model's mask; 1 for the first model itself
    score: float  # what the model predicted: IoU (box, point) or probability (text); 0 without an answer


@dataclass(frozen=True)
class Summary:
    """Means over objects; every object counts the same. None where there is no object."""

    model: str
    prompt: PromptKind
    objects: int
    miou: float | None
    by_size: dict[str, float | None]  # mIoU
    counts: dict[str, int]  # objects of each size
    agreement: float | None
    # What `comparison.compare` adds.
    interval: Interval | None = None  # of mIoU
    share: float | None = None  # mIoU over the first model's
    share_interval: Interval | None = None  # None for the first model itself
    from_zeros: float | None = None  # the way from an embedding of zeros (0) to the first model (1)
    from_zeros_interval: Interval | None = None


def size_of(area: int) -> str:
    """COCO's name for an object of `area` pixels."""
    return SIZES[0] if area < SMALL else SIZES[1] if area < MEDIUM else SIZES[2]


def summarise(scores: Sequence[ObjectScore], model: str, prompt: PromptKind) -> Summary:
    """Means of one model's answers to one kind of prompt."""
    own = [score for score in scores if score.model == model and score.prompt == prompt]
    sizes = {size: [score.iou for score in own if size_of(score.area) == size] for size in SIZES}
    return Summary(
        model,
        prompt,
        len(own),
        _mean(score.iou for score in own),
        {size: _mean(values) for size, values in sizes.items()},
        {size: len(values) for size, values in sizes.items()},
        _mean(score.agreement for score in own),
    )


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None
