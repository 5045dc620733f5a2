"""Heads: which maps they use, and what they make of them."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from efficientsam3.checkpoints.standardisation import Standardisation
from efficientsam3.config.schema import StudentConfig
from efficientsam3.models.head_modules import Fpn4Head, FpnHead
from efficientsam3.models.heads import HEADS, Head, embedding_width, identify_head, output_prefix
from efficientsam3.models.student import Student, StudentArchitecture, pyramid_levels
from efficientsam3.models.student_files import identify_backbone, load_trained_student
from efficientsam3.models.students import named_backbones
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.request import describe
from unit.conftest import training_checkpoint


@pytest.mark.parametrize(("image_size", "embed_size"), [(1008, 72), (1024, 64), (224, 16)])
@pytest.mark.parametrize("backbone", named_backbones())
def test_named_students_give_their_strides_8_16_and_32(backbone: str, image_size: int, embed_size: int) -> None:
    assert pyramid_levels(backbone, image_size, embed_size) == (1, 2, 3)


@pytest.mark.parametrize(
    ("backbone", "levels"),
    [
        ("timm/efficientnet_lite0", (2, 3, 4)),  # of strides 2, 4, 8, 16, 32
        ("timm/vit_tiny_patch16_224", (11,)),  # twelve maps of stride 16
        ("timm/vgg11_bn", (3, 4, 5)),  # the coarsest is none that timm offers unasked
    ],
)
def test_other_backbones_give_what_helps(backbone: str, levels: tuple[int, ...]) -> None:
    assert pyramid_levels(backbone, 224, 16) == levels


def test_the_coarsest_map_is_used_however_coarse_the_grid_is() -> None:
    assert pyramid_levels("efficientvit_b0", 224, 2) == (3,)


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


@pytest.mark.parametrize(("image_size", "embed_size"), [(1008, 72), (1024, 64), (224, 16)])
@pytest.mark.parametrize("backbone", named_backbones())
def test_named_students_give_their_stride_4_to_a_head_that_asks(
    backbone: str, image_size: int, embed_size: int
) -> None:
    assert pyramid_levels(backbone, image_size, embed_size, HEADS["fpn4"].pyramid) == (0, 1, 2, 3)


def test_a_backbone_without_finer_maps_is_refused() -> None:
    with pytest.raises(UserError, match=r"vit_tiny_patch16_224' has no map finer than stride 16.*HEAD fpn"):
        Student(StudentArchitecture("timm/vit_tiny_patch16_224", 8, 16, 224, "fpn4"))


@pytest.mark.parametrize("side", [16, 14])  # of the finest map: 4 cells a cell, and 3.5
def test_what_lies_within_a_cell_reaches_the_embedding(side: int) -> None:
    torch.manual_seed(0)
    head = Fpn4Head([2, 6, 8], embed_dim=16, grid=4).eval()
    maps = [torch.zeros(2, channels, size, size) for channels, size in ((2, side), (6, 4), (8, 2))]
    stripes = torch.arange(side) % 2 * 2.0 - 1  # whose mean over a cell is that of zeros
    maps[0][1] = stripes[:, None]
    with torch.no_grad():
        without, with_stripes = head(maps)
    assert without.shape == (16, 4, 4)
    assert (with_stripes - without).abs().max() > 1e-2
    plain = FpnHead([2, 6, 8], embed_dim=16, grid=4).eval()
    if side == 16:
        with torch.no_grad():
            same, averaged = plain(maps)
        torch.testing.assert_close(same, averaged)


def test_cells_become_channels_in_the_order_of_pytorch() -> None:
    head, features = Fpn4Head([3], embed_dim=16, grid=4), torch.randn(2, 3, 16, 16)
    seen: list[torch.Tensor] = []
    head.fpn.lateral[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    head([features])
    torch.testing.assert_close(seen[0], torch.nn.functional.pixel_unshuffle(features, 4))


def test_the_last_convolution_is_the_output() -> None:
    for head in HEADS.values():
        module = head.build([4, 8], 16, 8)
        convolutions = [(name, each) for name, each in module.named_modules() if isinstance(each, torch.nn.Conv2d)]
        name, last = convolutions[-1]
        assert head.output == f"head.{name}."
        assert last.out_channels == 16
        assert last.bias is not None


def test_a_checkpoint_from_before_there_was_a_choice_has_the_published_head() -> None:
    assert StudentArchitecture(backbone="efficientvit_b0", embed_dim=8, embed_size=16, image_size=224).head == (
        "published"
    )


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(UserError, match=r"MODEL\.HEAD 'unet'.*published or fpn or fpn4"):
        Student(StudentArchitecture("efficientvit_b0", 8, 16, 224, "unet"))


class ToyHead(nn.Module):
    """A linear map of the last map."""

    def __init__(self, channels: int, embed_dim: int) -> None:
        super().__init__()
        self.only = nn.Conv2d(channels, embed_dim, kernel_size=1)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        embedding: torch.Tensor = self.only(maps[-1])
        return embedding


TOY = Head(
    "a linear map of the last map",
    lambda channels, embed_dim, _: ToyHead(channels[-1], embed_dim),
    pyramid=False,
    inputs=r"head\.only\.weight",
    output="head.only.",
)


def test_a_new_head_is_one_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(HEADS, "toy", TOY)
    assert StudentConfig(BACKBONE="efficientvit_b0", HEAD="toy").HEAD == "toy"
    assert "toy: a linear map" in describe(HEADS)
    content = training_checkpoint("efficientvit_b0", head="toy")
    state = content["model"]
    assert (identify_head(state), output_prefix(state), embedding_width(state)) == ("toy", "head.only.", 64)
    assert identify_backbone(state) == "efficientvit_b0"

    standardisation = Standardisation(torch.linspace(-3, 4, 64), torch.linspace(0.1, 5, 64))
    torch.save(content | {"normalisation": standardisation.state_dict()}, tmp_path / "toy.pth")
    plain = Student.from_state(StudentArchitecture(**content["architecture"]), state)
    folded = load_trained_student(tmp_path / "toy.pth")
    pixels = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(folded(pixels), standardisation.restore(plain(pixels)), rtol=1e-5, atol=1e-5)
