"""The detector that is asked many prompts at once, differentiably."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3 import detector as module
from efficientsam3.sam3.contents import Contents
from efficientsam3.sam3.detector import Concepts, load_detector
from efficientsam3.sam3.efficientsam3 import EfficientSAM3
from efficientsam3.sam3.promptable import PADDING_LABEL
from efficientsam3.sam3.torch_calls import ask_detector, detector_features

BOX = [0.5, 0.4, 0.2, 0.3]


def test_prompts_asked_together_are_answered_as_each_alone_by_the_whole_model(tiny_sam3_path: Path) -> None:
    embedding = torch.randn(2, 64, 16, 16, generator=torch.Generator().manual_seed(0))
    detector = load_detector(tiny_sam3_path, ["a red car", "dog", "a red car"])
    detector.encode_phrases()
    detector.encode_phrases()  # once is enough
    assert detector.detector.text_encoder is None
    places = detector.places(["dog", "visual", "a red car"])
    boxes = torch.tensor([[0.0] * 4, BOX, [0.0] * 4])
    labels = torch.tensor([PADDING_LABEL, 1, PADDING_LABEL])
    concepts = Concepts(torch.tensor([1, 0, 1]), torch.tensor(places), boxes, labels)
    assert [part.labels.tolist() for part in concepts.parts(2)] == [[PADDING_LABEL, 1], [PADDING_LABEL]]
    found = detector(detector.features(embedding), concepts)
    whole = EfficientSAM3.from_pretrained(tiny_sam3_path, "cpu")
    for index, (image, phrase, given) in enumerate(((1, "dog", []), (0, "visual", [BOX]), (1, "a red car", []))):
        features = detector_features(whole.detector, embedding[image : image + 1])
        text = whole.text_features(phrase)
        expected = ask_detector(whole.detector, features, text, torch.tensor(given), [1] * len(given))
        torch.testing.assert_close(found.masks[index], expected.pred_masks[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.boxes[index], expected.pred_boxes[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.logits[index], expected.pred_logits[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.presence[index], expected.presence_logits[0, 0], rtol=1e-4, atol=1e-5)
        scores = expected.pred_logits[0].sigmoid() * expected.presence_logits[0].sigmoid()
        torch.testing.assert_close(found.scores[index], scores, rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in detector.parameters())


@pytest.mark.parametrize(
    ("without", "message"),
    [("detector_model.detr_encoder.", "without its detector"), ("detector_model.text_", "without its text encoder")],
)
def test_a_model_that_lacks_a_part_is_refused(
    tiny_sam3_path: Path, monkeypatch: pytest.MonkeyPatch, without: str, message: str
) -> None:
    read = module.read_contents

    def without_part(path: Path) -> Contents:
        whole = read(path)
        kept = {key: value for key, value in whole.tensors.items() if not key.startswith(without)}
        return replace(whole, tensors=kept)

    monkeypatch.setattr(module, "read_contents", without_part)
    with pytest.raises(UserError, match=message):
        load_detector(tiny_sam3_path, ["dog"])


def test_what_cannot_be_asked_is_refused_before_work_begins(tiny_sam3_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"at most 32 fit"):
        load_detector(tiny_sam3_path, ["dog", "very " * 40 + "long"])
    with pytest.raises(UserError, match=r"none\.pt does not exist"):
        load_detector(tmp_path / "none.pt", ["dog"])
    (tmp_path / "sam.onnx").touch()
    with pytest.raises(UserError, match=r"sam\.onnx is a mask decoder"):
        load_detector(tmp_path / "sam.onnx", ["dog"])
