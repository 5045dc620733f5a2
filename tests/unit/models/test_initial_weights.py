"""Initial weights out of local files: every layout, and what was and was not loaded."""

import logging
from pathlib import Path

import pytest
import timm
import torch

from efficientsam3.models.initial_weights import InitialWeights, load_initial_weights
from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.models.student_files import to_published_layout
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.logging import LOGGER_NAME

LITE = StudentArchitecture("timm/efficientnet_lite0", 8, 16, 224, "fpn")
NAME = "efficientvit_b0"
State = dict[str, torch.Tensor]


def make_student(backbone: str = NAME, embed_dim: int = 8, head: str = "published") -> Student:
    return Student(StudentArchitecture(backbone, embed_dim, 16, 224, head))


def make_timm(name: str) -> State:
    """A whole model of timm, with its classifier."""
    torch.manual_seed(1)
    state: State = timm.create_model(name).state_dict()
    return state


def load(student: Student, state: State, tmp_path: Path, **options: bool) -> InitialWeights:
    torch.save(state, tmp_path / "weights.pth", **options)
    return load_initial_weights(student, tmp_path / "weights.pth")


def backbone_of(student: Student) -> list[torch.Tensor]:
    return list(student.backbone.state_dict().values())


def test_a_published_student_is_loaded_whole(tmp_path: Path) -> None:
    source, student = make_student(), make_student()
    weights = load(student, to_published_layout(source.state_dict(), NAME), tmp_path)
    assert (weights.left_random, weights.unused, weights.by_order) == ((), (), False)
    assert all(torch.equal(value, student.state_dict()[key]) for key, value in source.state_dict().items())


@pytest.mark.parametrize(
    "source", [make_student(embed_dim=9), make_student(head="fpn"), make_student(embed_dim=64, head="fpn")]
)
def test_a_head_that_does_not_fit_is_left_out_whole_and_named(
    source: Student, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    student = make_student()
    head = {key: value.clone() for key, value in student.head.state_dict().items()}
    with caplog.at_level(logging.INFO, LOGGER_NAME):
        weights = load(student, source.state_dict(), tmp_path)
    assert weights.left_random == tuple(f"head.{key}" for key in head)
    assert set(weights.unused) == {f"head.{key}" for key in source.head.state_dict()}
    assert all(torch.equal(value, student.head.state_dict()[key]) for key, value in head.items())
    assert all(map(torch.equal, backbone_of(student), backbone_of(source)))
    assert f"{len(head)} tensors are not in it, or do not fit, and start random: head.0.weight" in caplog.text


@pytest.mark.parametrize("backbone", ["repvit_m0_9", "tiny_vit_5m", NAME, "timm/vit_tiny_patch16_224", LITE.backbone])
def test_a_backbone_in_timms_layout(backbone: str, tmp_path: Path) -> None:
    """Feature extractors rename their parts; the classifier stays behind."""
    name = {"tiny_vit_5m": "tiny_vit_5m_224"}.get(backbone, backbone.removeprefix("timm/"))
    state, student = make_timm(name), make_student(backbone)
    weights = load(student, state, tmp_path)
    assert not weights.by_order
    assert weights.unused
    assert all(key.startswith("head.") for key in weights.left_random)
    found = {key.replace(".", "_"): value for key, value in state.items()}
    for key, value in student.backbone.state_dict().items():
        assert torch.equal(value, found[key.removeprefix("model.").replace(".", "_")]), key


def renamed(state: State) -> State:
    """As other implementations call the same tensors."""
    return {f"_layer{index}.{key.rpartition('.')[2]}": value for index, (key, value) in enumerate(state.items())}


def test_other_names_in_the_same_order_out_of_an_old_style_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state, student = make_timm("efficientnet_lite0"), Student(LITE)
    with caplog.at_level(logging.INFO, LOGGER_NAME):
        weights = load(student, renamed(state), tmp_path, _use_new_zipfile_serialization=False)
    assert weights.by_order
    assert len(weights.unused) == 8  # last convolution, its BatchNorm, and the classifier
    assert all(map(torch.equal, backbone_of(student), list(state.values())))
    assert "288 tensors loaded by their order and shapes" in caplog.text


def test_order_counts_only_when_everything_fits(tmp_path: Path) -> None:
    state = renamed(make_timm("efficientnet_lite0"))
    keys = list(state)
    swapped = {**state, keys[10]: state[keys[20]]}
    other_kind = {key.replace("running_mean", "mean"): value for key, value in state.items()}
    short = {key: state[key] for key in keys[:280]}
    for broken in (swapped, other_kind, short):
        with pytest.raises(UserError, match=r"weights\.pth matches nothing of 'timm/efficientnet_lite0'.*288 tensors"):
            load(Student(LITE), broken, tmp_path)


def test_a_backbone_with_gaps_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    state, student = make_timm("efficientvit_b0"), make_student()
    before = [value.clone() for value in backbone_of(student)]
    name = next(iter(state))
    with pytest.raises(
        UserError, match=r"of 186 tensors of the backbone, 0 have another shape there and 1 are missing"
    ):
        load(student, {key: value for key, value in state.items() if key != name}, tmp_path)
    with pytest.raises(UserError, match="1 have another shape there and 0 are missing"):
        load(student, {**state, name: torch.zeros(3)}, tmp_path)
    assert all(map(torch.equal, backbone_of(student), before))


def test_another_models_weights_match_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="matches nothing of 'efficientvit_b0'"):
        load(make_student(), {"layers.0.weight": torch.ones(1)}, tmp_path)
