import pytest
import torch

from efficientsam3.evaluate.masks.scores import ObjectScore, size_of, summarise
from efficientsam3.sam3.geometry import mask_iou


def test_iou_by_hand() -> None:
    a, b = torch.zeros(2, 6, 6, dtype=torch.bool)
    a[0:4, 0:4] = True  # 16
    b[2:6, 2:5] = True  # 12, of which 2 x 2 in common
    assert mask_iou(a, b) == pytest.approx(4 / 24)
    assert mask_iou(a, a) == 1
    assert mask_iou(a, torch.zeros_like(a)) == 0
    assert mask_iou(torch.zeros_like(a), torch.zeros_like(a)) == 1


@pytest.mark.parametrize(
    ("area", "size"),
    [(1, "small"), (1023, "small"), (1024, "medium"), (9215, "medium"), (9216, "large"), (10**6, "large")],
)
def test_sizes_are_coco_s(area: int, size: str) -> None:
    assert size_of(area) == size


def test_every_object_counts_the_same_in_the_means() -> None:
    def score(model: str, prompt: str, area: int, iou: float, agreement: float) -> ObjectScore:
        return ObjectScore(model, "sa_1", 0, prompt, area, iou, agreement, 0.9)  # type: ignore[arg-type]

    scores = [
        score("a", "box", 100, 0.2, 1.0),
        score("a", "box", 200, 0.4, 0.5),
        score("a", "box", 20_000, 0.9, 0.0),
        score("a", "point", 100, 0.0, 0.0),
        score("b", "box", 100, 0.0, 0.0),
    ]
    summary = summarise(scores, "a", "box")
    assert summary.objects == 3
    assert summary.miou == pytest.approx(0.5)
    assert summary.agreement == pytest.approx(0.5)
    assert summary.by_size == {"small": pytest.approx(0.3), "medium": None, "large": pytest.approx(0.9)}
    assert summary.counts == {"small": 2, "medium": 0, "large": 1}
