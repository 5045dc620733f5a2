import pytest
import torch

from efficientsam3.models.heads import HEADS
from efficientsam3.models.student import (
    Student,
    StudentArchitecture,
    build_backbone,
    check_half_size,
    check_student_grid,
)
from efficientsam3.models.students import STUDENTS, named_backbones
from efficientsam3.models.tracing import trace
from efficientsam3.runtime.errors import UserError
from tiny import NAMED_BACKBONES

PARAMETERS = {
    "efficientvit_b0": 682_608,
    "efficientvit_b1": 4_643_936,
    "efficientvit_b2": 14_977_008,
    "repvit_m0_9": 4_717_792,
    "repvit_m1_1": 7_774_864,
    "repvit_m2_3": 22_404_232,
    "tiny_vit_5m": 5_071_124,
    "tiny_vit_11m": 10_547_076,
    "tiny_vit_21m": 20_620_416,
}


@pytest.mark.parametrize("backbone", NAMED_BACKBONES)
def test_the_nine_have_the_published_size_and_grid(backbone: str) -> None:
    with torch.device("meta"):
        model = build_backbone(backbone, 1008)
    assert trace(model, (1, 3, 1008, 1008))[0][-1].shape[-2:] == (32, 32)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[backbone]
    check_student_grid(StudentArchitecture(backbone))


@pytest.mark.parametrize("backbone", NAMED_BACKBONES)
def test_the_nine_take_images_of_half_the_size(backbone: str) -> None:
    check_half_size(StudentArchitecture(backbone))


def test_a_student_of_one_size_alone_is_not_trained_on_half_of_it() -> None:
    with pytest.raises(UserError, match="takes images of 224 pixels alone, and TRAIN.SMALL_EPOCHS gives it half"):
        check_half_size(StudentArchitecture("timm/vit_tiny_patch16_224", 8, 14, 224))
    with pytest.raises(UserError, match="and 225 pixels a side have no half"):
        check_half_size(StudentArchitecture("efficientvit_b0", 8, 8, 225))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backbone", NAMED_BACKBONES)
def test_every_parameter_gets_a_gradient(backbone: str, head: str) -> None:
    """DistributedDataParallel waits for ever for one that does not."""
    student = Student(StudentArchitecture(backbone, 8, 4, 64, head)).train()
    student(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert [name for name, parameter in student.named_parameters() if parameter.grad is None] == []


def test_every_student_has_a_backbone_of_its_own() -> None:
    assert len(named_backbones()) == len(STUDENTS)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backbone", ["timm/resnet18", "timm/vit_tiny_patch16_224"])
def test_any_timm_backbone_gives_the_embedding(backbone: str, head: str) -> None:
    if (backbone, head) == ("timm/vit_tiny_patch16_224", "fpn4"):
        pytest.skip("it has no finer map, and is refused: see test_heads.py")
    architecture = StudentArchitecture(backbone, embed_dim=8, embed_size=16, image_size=224, head=head)
    check_student_grid(architecture)
    student = Student(architecture).eval()
    with torch.no_grad():
        assert student(torch.zeros(2, 3, 224, 224)).shape == (2, 8, 16, 16)


def test_the_head_is_the_published_one() -> None:
    student = Student(StudentArchitecture("efficientvit_b0", 8, 16, 224))
    head = [key for key in student.state_dict() if not key.startswith("backbone.")]
    assert head == [
        "head.0.weight",
        *(f"head.1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
        "head.3.weight",
        "head.3.bias",
    ]
    assert student.head[0].kernel_size == (1, 1)
    assert student.head[0].bias is None
    assert student.head[3].kernel_size == (3, 3)
    assert isinstance(student.head[2], torch.nn.GELU)


@pytest.mark.parametrize("backbone", ["resnet18", "timm/no_such_model", "", "timm/"])
def test_unknown_backbones_are_refused(backbone: str) -> None:
    with pytest.raises(UserError, match=r"MODEL\.BACKBONE"):
        build_backbone(backbone, 224)
