"""Students that are measured with the necks that were trained with them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from efficientsam3.checkpoints.necks import read_trained_necks
from efficientsam3.evaluate.masks.ground_truth import open_ground_truth
from efficientsam3.evaluate.masks.mixtures import TRUNK, Pair
from efficientsam3.evaluate.masks.open_models import FedPixels, open_models
from efficientsam3.evaluate.masks.parts import Statistics
from efficientsam3.evaluate.masks.probe import MaskProbe
from efficientsam3.evaluate.masks.segmenters import EncoderWithDecoder, WholeModel
from efficientsam3.evaluate.observers import build_probe
from efficientsam3.models.student_files import load_trained_student
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.decoders import Sam3Decoder
from efficientsam3.sam3.necks import load_neck
from efficientsam3.sam3.prompts import ObjectPrompt
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.testing.tiny_sam3 import write_tiny_sam3
from efficientsam3.train.necks import NeckPlan
from efficientsam3.train.plan import ProbePlan
from efficientsam3.train.targets import StoredTargets

Make = Callable[..., Path]
CPU = torch.device("cpu")
PIXELS = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PROMPTS = (ObjectPrompt(box=(20.0, 20.0, 90.0, 70.0)), ObjectPrompt(points=((30.0, 40.0),), labels=(1,)))


def test_a_checkpoint_answers_as_the_model_that_it_is_merged_into(
    tiny_sam3_path: Path, with_trained_necks: Make, student_checkpoint: Make, merged_with_necks: Path
) -> None:
    given = [str(with_trained_necks()), str(merged_with_necks), str(student_checkpoint())]
    own, merged, plain = open_models(given, tiny_sam3_path, FedPixels(), CPU)
    answers = [model.open("image", PIXELS) for model in (own, merged, plain)]
    for prompt in PROMPTS:
        found, expected, other = (ask(prompt).logits for ask in answers)
        assert found is not None
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found, other, rtol=1e-2, atol=1e-2)


def test_what_is_explained_names_the_neck(
    tiny_sam3_path: Path, with_trained_necks: Make, photographs_path: Path
) -> None:
    models = [f"teacher={tiny_sam3_path}", f"student={with_trained_necks()}"]
    teacher, student = open_models(models, tiny_sam3_path, FedPixels(), CPU)
    assert isinstance(teacher, WholeModel)
    assert isinstance(student, EncoderWithDecoder)
    pair = Pair(teacher, student, open_ground_truth(photographs_path))
    image_id = pair._truth.ids[0].decode()
    parts = pair.parts(Statistics.of(pair.cells([image_id])), [], image_id)
    assert [part.name for part in parts if part.family == TRUNK] == ["trunk", "neck"]


def test_another_decoder_than_that_of_the_training_is_refused(
    with_trained_necks: Make, box_decoder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"with the neck of a SAM3's tracker, and .*onnx has no neck"):
        open_models([str(with_trained_necks())], box_decoder, FedPixels(), CPU)
    write_tiny_sam3(tmp_path / "other.pt", seed=5)
    with pytest.raises(UserError, match=r"with the tracker's neck of another SAM3 than .*other\.pt"):
        open_models([str(with_trained_necks())], tmp_path / "other.pt", FedPixels(), CPU)
    # The detector's neck has no part in points and boxes.
    (model,) = open_models([str(with_trained_necks("detector"))], tmp_path / "other.pt", FedPixels(), CPU)
    assert isinstance(model.decoder, Sam3Decoder)


def test_the_probe_decodes_behind_the_trained_neck(
    tmp_path: Path, photographs_path: Path, tiny_sam3_path: Path, write_store, with_trained_necks: Make
) -> None:
    store = EmbeddingStore(write_store(tmp_path / "store", ["sa_7", "sa_9"], shape=(64, 16, 224)))
    plan, targets = ProbePlan(tiny_sam3_path, photographs_path, images=1, objects=1), StoredTargets(store)
    decoder, necks = Sam3Decoder(tiny_sam3_path, CPU), read_trained_necks(with_trained_necks())
    assert necks is not None
    neck = load_neck(decoder.neck, necks, "tracker", "the student", "SAM3")
    probe = build_probe(plan, targets, 0, CPU, {"tracker": NeckPlan(decoder.neck, necks.origins["tracker"], 1.0)})
    asked: list[MaskProbe] = []
    student = load_trained_student(with_trained_necks())
    behind = Sam3Decoder.behind
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sam3Decoder, "behind", lambda self, neck: asked.append(neck) or behind(self, neck))
        probe(student, {"tracker": neck})
    assert asked == [neck]
    with pytest.raises(UserError, match=r"PROBE\.DECODER .* lacks the neck that is trained"):
        build_probe(plan, targets, 0, CPU, {"tracker": NeckPlan(decoder.neck, "another", 1.0)})
