"""Students read from every kind of file."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from efficientsam3.checkpoints.sam3_keys import STUDENT_PREFIX
from efficientsam3.checkpoints.standardisation import Standardisation
from efficientsam3.checkpoints.student_keys import PUBLISHED_BACKBONES
from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.models.student_files import (
    load_student_state,
    load_trained_student,
    read_student,
    to_published_layout,
    to_timm_layout,
)
from efficientsam3.runtime.errors import UserError

State = dict[str, torch.Tensor]


def make_state(backbone: str) -> State:
    torch.manual_seed(0)
    return Student(StudentArchitecture(backbone, 8, 16, 224)).state_dict()


def same(found: State, expected: State) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def with_prefix(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("backbone", PUBLISHED_BACKBONES)
def test_every_published_backbone_in_either_layout(backbone: str, tmp_path: Path) -> None:
    state = make_state(backbone)
    published = to_published_layout(state, backbone)
    assert published.keys() != state.keys()
    assert same(to_timm_layout(published, backbone), state)
    for content in (state, published, {"model": published}):
        torch.save(content, tmp_path / "student.pth")
        file = read_student(tmp_path / "student.pth")
        assert (file.backbone, file.architecture, file.preprocessing) == (backbone, None, None)
        assert same(file.state, state)


def test_ddp_and_merged_prefixes_are_taken_off(tmp_path: Path) -> None:
    state = make_state("efficientvit_b0")
    published = to_published_layout(state, "efficientvit_b0")
    others = {"tracker.no_mem_embed": torch.ones(1, 1, 4)}
    for content in (
        with_prefix(state, "module."),
        with_prefix(published, "module."),
        with_prefix(published, STUDENT_PREFIX) | others,
        with_prefix(state, "detector_model.vision_encoder.backbone.student.") | others,
    ):
        torch.save(content, tmp_path / "student.pth")
        assert same(load_student_state(tmp_path / "student.pth", "efficientvit_b0"), state)


def test_a_training_checkpoint_tells_its_architecture(tmp_path: Path) -> None:
    state = make_state("repvit_m0_9")
    architecture = asdict(StudentArchitecture("repvit_m0_9", 8, 16, 224))
    content = {"model": state, "architecture": architecture, "preprocessing": {"image_size": 224}, "epoch": 3}
    torch.save(content, tmp_path / "ckpt_epoch_3.pth")
    file = read_student(tmp_path / "ckpt_epoch_3.pth")
    assert (file.architecture, file.preprocessing) == (
        StudentArchitecture(**architecture),
        Preprocessing(image_size=224),
    )
    assert same(file.state, state)


@pytest.mark.parametrize("kind", ["none", "channel", "rotated"])
def test_normalisations_that_do_not_fit_are_refused(kind: str, tmp_path: Path) -> None:
    architecture = asdict(StudentArchitecture("repvit_m0_9", 8, 16, 224))
    whole = Standardisation.white(torch.zeros(8, dtype=torch.float64), torch.diag(torch.arange(1.0, 9).double()))
    states: dict[str, list[tuple[Any, str]]] = {
        "none": [(3, "not a mean and a std"), ({"mean": torch.zeros(8)}, "not a mean and a std")],
        "channel": [
            ({"mean": torch.zeros(8), "std": 1.0}, "not a mean and a std"),
            ({"mean": torch.zeros(8), "std": torch.zeros(8)}, "not positive"),
            ({"mean": torch.zeros(7), "std": torch.ones(8)}, "has shapes"),
        ],
        "rotated": [
            (whole.state_dict() | {"rotation": torch.ones(8, 8)}, r"is no rotation.*8 channels"),
            (whole.state_dict() | {"rotation": torch.eye(7)}, r"has the shape \(7, 7\)"),
            (whole.state_dict() | {"rotation": torch.eye(8) / 0}, "normalisation.rotation"),
        ],
    }
    path = tmp_path / "ckpt_epoch_3.pth"
    for state, sentence in states[kind]:
        content = {"model": make_state("repvit_m0_9"), "architecture": architecture, "normalisation": state}
        torch.save(content, path)
        with pytest.raises(UserError, match=sentence):
            read_student(path)


def test_an_own_backbone_needs_the_training_checkpoint(tmp_path: Path) -> None:
    state = make_state("timm/resnet10t")
    torch.save({"model": state}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"does not say which student.*ckpt_epoch_N\.pth"):
        read_student(tmp_path / "x.pth")
    architecture = {"backbone": "timm/resnet10t", "embed_dim": 8, "embed_size": 16, "image_size": 224}
    torch.save({"model": state, "architecture": architecture}, tmp_path / "x.pth")
    assert read_student(tmp_path / "x.pth").backbone == "timm/resnet10t"
    assert to_published_layout(state, "timm/resnet10t").keys() == state.keys()


def test_another_model_is_refused(tmp_path: Path) -> None:
    torch.save({"layers.0.weight": torch.ones(1)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"holds no student.*layers\.0\.weight"):
        read_student(tmp_path / "x.pth")
    torch.save(make_state("tiny_vit_5m"), tmp_path / "x.pth")
    with pytest.raises(UserError, match="holds a tiny_vit_5m student, not repvit_m0_9"):
        load_student_state(tmp_path / "x.pth", "repvit_m0_9")


def test_weights_alone_do_not_say_what_they_were_trained_for(tmp_path: Path) -> None:
    torch.save(make_state("efficientvit_b0"), tmp_path / "bare.pt")
    with pytest.raises(UserError, match="does not say what it was trained for"):
        load_trained_student(tmp_path / "bare.pt")
