"""Heads: which maps they use, and what they make of them."""

import pytest
import torch

from efficientsam3.models.heads import FpnHead, build_head
from efficientsam3.models.student import TIMM_NAMES, Student, StudentArchitecture, fpn_levels
from efficientsam3.runtime.errors import UserError


@pytest.mark.parametrize(("image_size", "embed_size"), [(1008, 72), (1024, 64), (224, 16)])
@pytest.mark.parametrize("backbone", TIMM_NAMES)
def test_the_nine_give_their_strides_8_16_and_32(backbone: str, image_size: int, embed_size: int) -> None:
    assert fpn_levels(backbone, image_size, embed_size) == (1, 2, 3)


@pytest.mark.parametrize(
    ("backbone", "levels"),
    [
        ("timm/efficientnet_lite0", (2, 3, 4)),  # of strides 2, 4, 8, 16, 32
        ("timm/vit_tiny_patch16_224", (11,)),  # twelve maps of stride 16
        ("timm/vgg11_bn", (3, 4, 5)),  # the coarsest is none that timm offers unasked
    ],
)
def test_other_backbones_give_what_helps(backbone: str, levels: tuple[int, ...]) -> None:
    assert fpn_levels(backbone, 224, 16) == levels


def test_the_coarsest_map_is_used_however_coarse_the_grid_is() -> None:
    assert fpn_levels("efficientvit_b0", 224, 2) == (3,)


def test_every_map_reaches_the_embedding_at_its_place() -> None:
    torch.manual_seed(0)
    head = FpnHead([4, 6, 8], embed_dim=16, grid=18).eval()
    maps = [torch.randn(1, channels, side, side) for channels, side in ((4, 31), (6, 16), (8, 8))]
    with torch.no_grad():
        before = head(maps)
        assert before.shape == (1, 16, 18, 18)
        for index, features in enumerate(maps):
            changed = [each.clone() for each in maps]
            changed[index][..., : features.shape[-1] // 4, :] += 1
            difference = (head(changed) - before).abs().sum(dim=(0, 1, 3))  # [rows]
            assert difference[:3].min() > 1e-3, index
            assert difference[-4:].max() == 0, index


def test_the_last_convolution_is_the_output() -> None:
    for name in ("published", "fpn"):
        head = build_head(name, [4, 8], embed_dim=16, grid=8)
        convolutions = [module for module in head.modules() if isinstance(module, torch.nn.Conv2d)]
        assert head.output is convolutions[-1]
        assert head.output.out_channels == 16
        assert head.output.bias is not None


def test_a_checkpoint_from_before_there_was_a_choice_has_the_published_head() -> None:
    assert StudentArchitecture(backbone="efficientvit_b0", embed_dim=8, embed_size=16, image_size=224).head == (
        "published"
    )


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(UserError, match=r"MODEL\.HEAD 'unet'.*published or fpn"):
        Student(StudentArchitecture("efficientvit_b0", 8, 16, 224, "unet"))
