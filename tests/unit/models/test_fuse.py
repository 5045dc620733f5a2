"""Fused and unfused students say the same; nothing that could be fused is left."""

import pytest
import torch
from torch import nn

from efficientsam3.models.fuse import fuse_modules
from efficientsam3.models.student import Student, StudentArchitecture

SHAPE = (1, 3, 224, 224)
NINE = ("repvit_m0_9", "repvit_m1_1", "repvit_m2_3", "tiny_vit_5m", "tiny_vit_11m", "tiny_vit_21m")
NINE += ("efficientvit_b0", "efficientvit_b1", "efficientvit_b2")


def trained_student(backbone: str, head: str = "published") -> Student:
    """A student whose BatchNorms do something, as after training."""
    torch.manual_seed(0)
    student = Student(StudentArchitecture(backbone, 64, 16, 224, head)).eval()
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return student


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


@torch.no_grad()
@pytest.mark.parametrize(
    ("backbone", "head"),
    [
        ("repvit_m0_9", "published"),
        ("tiny_vit_5m", "fpn"),
        ("efficientvit_b0", "fpn"),
        ("efficientvit_b0", "fpn4"),
        ("timm/efficientnet_lite0", "published"),  # its BatchNorms carry activations
        *(pytest.param(name, "published", marks=pytest.mark.slow) for name in NINE),
    ],
)
def test_the_fused_student_equals_the_unfused_one_without_any_batch_norm(backbone: str, head: str) -> None:
    student, pixels = trained_student(backbone, head), torch.randn(*SHAPE)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    fused = fuse_modules(student, SHAPE)
    expected = student(pixels)
    assert (fused(pixels) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert count(fused, nn.BatchNorm2d) == 0 < count(student, nn.BatchNorm2d)
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())


def test_branches_of_repvit_become_single_convolutions() -> None:
    student = trained_student("repvit_m0_9")
    assert count(fuse_modules(student, SHAPE), nn.Conv2d) < count(student, nn.Conv2d)


def test_the_structure_can_be_made_without_values() -> None:
    with torch.device("meta"):
        student = Student(StudentArchitecture("tiny_vit_5m", 64, 16, 224)).eval()
    empty, whole = fuse_modules(student, SHAPE), fuse_modules(trained_student("tiny_vit_5m"), SHAPE)
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (empty, whole)]
    assert shapes[0] == shapes[1]


class Odd(nn.Module):
    """Convolutions and BatchNorms in arrangements that must be left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.other, self.untracked = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        shared = self.conv(pixels)
        result: torch.Tensor = self.first(shared) + self.second(shared.relu()) + self.second(shared)
        return result + self.untracked(self.other(pixels))


@torch.no_grad()
def test_what_is_not_a_linear_pair_is_left_alone() -> None:
    model, pixels = Odd().eval(), torch.randn(2, 3, 8, 8)
    nn.init.constant_(model.first.running_mean, 3)
    fused = fuse_modules(model, (2, 3, 8, 8))
    torch.testing.assert_close(fused(pixels), model(pixels))


def test_training_statistics_are_not_fused() -> None:
    with pytest.raises(AssertionError, match="running statistics"):
        fuse_modules(trained_student("tiny_vit_5m").train(), SHAPE)
