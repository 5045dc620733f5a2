"""The published students' names: total and inverse in both directions, for all nine."""

import json
from pathlib import Path

import pytest
import torch

from efficientsam3.checkpoints.student_keys import (
    PUBLISHED_BACKBONES,
    published_to_timm,
    timm_to_published,
)
from efficientsam3.models.heads import embedding_width, identify_head
from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.models.student_files import identify_backbone
from efficientsam3.models.students import named_backbones
from efficientsam3.runtime.errors import UserError

PUBLISHED = Path(__file__).parents[3].parent / "shared" / "sam3_reference" / "student_tensors.json"


def meta_state(backbone: str, head: str = "published") -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return Student(StudentArchitecture(backbone, head=head)).state_dict()


def test_every_published_backbone_is_a_named_students() -> None:
    assert set(PUBLISHED_BACKBONES) <= named_backbones().keys()


@pytest.mark.parametrize("head", ["published", "fpn"])
@pytest.mark.parametrize("backbone", PUBLISHED_BACKBONES)
def test_to_published_and_back(backbone: str, head: str) -> None:
    state = meta_state(backbone, head)
    published = [timm_to_published(key, backbone) for key in state]
    assert len(set(published)) == len(published)
    assert [published_to_timm(key, backbone) for key in published] == list(state)
    assert all(key.startswith(("backbone.model.", "head.")) for key in published)
    renamed = dict(zip(published, state.values(), strict=True))
    assert identify_backbone(state) == identify_backbone(renamed) == backbone
    assert identify_head(renamed) == head
    assert embedding_width(renamed) == 1024


@pytest.mark.parametrize("backbone", PUBLISHED_BACKBONES)
def test_the_published_files_keys_and_shapes(backbone: str) -> None:
    if not PUBLISHED.is_file():
        pytest.skip("the list of the published files' tensors is not beside this checkout")
    published = json.loads(PUBLISHED.read_text())[backbone]
    found = {timm_to_published(key, backbone): list(value.shape) for key, value in meta_state(backbone).items()}
    assert list(found) == list(published)  # the order too
    assert found == {key: shape for key, (shape, _) in published.items()}


@pytest.mark.parametrize(
    ("timm_key", "published_key", "backbone"),
    [
        ("backbone.stem.conv1.c.weight", "backbone.model.features.0.0.c.weight", "repvit_m0_9"),
        (
            "backbone.stages_1.downsample.ffn.conv2.bn.bias",
            "backbone.model.features.4.channel_mixer.m.2.bn.bias",
            "repvit_m1_1",
        ),
        ("backbone.stages_3.blocks.1.se.fc1.bias", "backbone.model.features.54.token_mixer.1.fc1.bias", "repvit_m2_3"),
        (
            "backbone.stages_2.downsample.conv1.conv.weight",
            "backbone.model.layers.1.downsample.conv1.c.weight",
            "tiny_vit_5m",
        ),
        ("backbone.stem_res0.main.x.weight", "backbone.model.input_stem.op_list.1.main.x.weight", "efficientvit_b2"),
        ("head.3.bias", "head.3.bias", "tiny_vit_21m"),
    ],
)
def test_examples(timm_key: str, published_key: str, backbone: str) -> None:
    assert timm_to_published(timm_key, backbone) == published_key
    assert published_to_timm(published_key, backbone) == timm_key


def test_a_strange_key_or_backbone_is_refused() -> None:
    with pytest.raises(UserError, match="not a tensor of a repvit_m0_9"):
        timm_to_published("backbone.stages_9.x.weight", "repvit_m0_9")
    with pytest.raises(UserError, match="not a tensor of a tiny_vit_5m"):
        published_to_timm("backbone.stages_0.x.weight", "tiny_vit_5m")
    with pytest.raises(UserError, match="has no published layout"):
        timm_to_published("backbone.x.weight", "timm/resnet18")


def test_no_state_of_another_model_is_taken_for_one_of_the_nine() -> None:
    assert identify_backbone({}) is None
    assert identify_backbone({"head.0.weight": torch.ones(2, 3, 1, 1), "backbone.layer1.weight": torch.ones(1)}) is None
    stem = {"backbone.stem.conv1.c.weight": torch.ones(1)}
    assert identify_backbone(stem | {"head.0.weight": torch.ones(2, 999, 1, 1)}) is None
