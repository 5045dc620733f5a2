"""What counts of several masks, with a model whose masks are given."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.evaluate.masks.ground_truth import Selection, open_ground_truth
from efficientsam3.evaluate.masks.measure import measure
from efficientsam3.evaluate.masks.segmenters import Ask
from efficientsam3.sam3.decoders import Answer


class Given:
    """Answers every prompt with the same masks."""

    preprocessing = Preprocessing()

    def __init__(self, name: str, masks: torch.Tensor, scores: list[float]) -> None:
        self.name, self._answer = name, Answer(masks, torch.tensor(scores))
        self.opened: Counter[str] = Counter()

    def embed(self, image_id: str, pixels: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def open(self, image_id: str, pixels: torch.Tensor) -> Ask:
        self.opened[image_id] += 1
        return lambda _: self._answer

    def has(self, image_id: str) -> bool:
        return True


@pytest.fixture
def truth(tmp_path: Path, write_coco):
    masks = np.zeros((2, 10, 20), dtype=bool)
    masks[0, :, :10] = masks[1, :5, 10:] = True  # 100 and 50 pixels
    return open_ground_truth(write_coco(tmp_path, {"one": list(masks)}))


def test_the_found_mask_that_overlaps_most_counts_and_agreement_is_with_the_first(truth) -> None:
    left, right, most = torch.zeros(3, 10, 20, dtype=torch.bool)
    left[:, :10] = right[:, 10:] = most[:, :15] = True
    first = Given("first", torch.stack([most, left, right]), [0.9, 0.8, 0.7])
    second = Given("second", torch.stack([right]), [0.6])
    nothing = Given("nothing", torch.zeros(0, 10, 20, dtype=torch.bool), [])
    seen: list[tuple[int, int]] = []

    def observe(image, thing, masks, scores, prompts) -> None:
        seen.append((thing.number, len(masks)))
        assert [len(mask.shape) for mask in masks] == [2, 2, 2]
        assert len(prompts) == 3

    scores = measure([first, second, nothing], truth, ["text", "box"], Selection(), observe).scores

    def figures(model: str, number: int) -> tuple[float, float, float]:
        (score,) = (s for s in scores if (s.model, s.number, s.prompt) == (model, number, "text"))
        return score.iou, score.agreement, round(score.score, 6)

    assert figures("first", 0) == (1, 1, 0.8)
    assert figures("first", 1) == (0.5, 1, 0.7)
    assert figures("second", 0) == (0, 0, 0.6)
    assert figures("second", 1) == (0.5, 1, 0.6)
    assert figures("nothing", 0) == figures("nothing", 1) == (0, 0, 0)
    assert seen == [(0, 3), (0, 3), (1, 3), (1, 3)]
    assert first.opened == {"one": 1}, "an image is encoded once, for all its prompts"
    assert scores[0].area == 100


def test_objects_that_cannot_be_asked_for_are_named_and_left_out(tmp_path: Path, write_coco) -> None:
    masks = np.zeros((2, 10, 20), dtype=bool)
    masks[0, :, :10] = masks[1, :5, 10:] = True
    path = write_coco(tmp_path, {"one": list(masks)})
    model = Given("model", torch.ones(1, 10, 20, dtype=torch.bool), [1.0])
    truth = open_ground_truth(path)
    image = truth.load(0)
    outside = replace(image, objects=(replace(image.objects[0], annotated_point=(1e6, -5.0)), image.objects[1]))
    truth.load = lambda _: outside  # type: ignore[method-assign]
    measurement = measure([model], truth, ["box", "point"], Selection())
    assert [(score.number, score.prompt) for score in measurement.scores] == [(0, "box"), (1, "box"), (1, "point")]
    (sentence,) = measurement.left_out
    assert f"{image.source}, object 0 of image one: The point [1000000.0, -5.0] is not in the image" in sentence
