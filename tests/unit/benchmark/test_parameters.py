import math
from pathlib import Path

import pytest
import torch

from efficientsam3.benchmark.parameters import Comparison, compare_models, select_students
from efficientsam3.models.students import STUDENTS
from efficientsam3.runtime.errors import UserError
from efficientsam3.testing.tiny_sam3 import TinySam3, tiny_sam3, write_tiny_sam3


@pytest.fixture(scope="module")
def published() -> Comparison:
    return compare_models(["all"])


def in_millions(count: int) -> float:
    return round(count / 1e6, 2)


@pytest.mark.slow
def test_students_have_the_published_sizes_in_the_published_order(published: Comparison) -> None:
    sizes = [in_millions(student.backbone_parameters) for student in published.students]
    assert sizes == [0.68, 4.64, 14.98, 4.72, 7.77, 22.40, 5.07, 10.55, 20.62]
    assert [student.backbone for student in published.students][0::3] == [
        "efficientvit_b0",
        "repvit_m0_9",
        "tiny_vit_5m",
    ]


@pytest.mark.slow
def test_teacher_has_the_published_sizes(published: Comparison) -> None:
    teacher = published.teacher
    assert in_millions(teacher.parameters) == 860.06
    assert in_millions(teacher.vision) == 461.84
    assert in_millions(teacher.language) == 353.72
    assert in_millions(teacher.trunk) == 446.24


@pytest.mark.slow
def test_trunk_macs_are_those_of_the_architecture(published: Comparison) -> None:
    tokens, width, mlp, window = 72 * 72, 1024, 4736, 24 * 24
    linear = 32 * tokens * (4 * width * width + 2 * width * mlp)
    attention = 2 * tokens * width * (28 * window + 4 * tokens)
    patches = tokens * 3 * 14 * 14 * width
    assert published.teacher.trunk_macs == linear + attention + patches


@pytest.mark.slow
def test_head_is_counted_at_the_backbones_grid(published: Comparison) -> None:
    student = next(student for student in published.students if student.name == "es_rv_m")
    channels, embed_dim, cells = 512, 1024, 32 * 32
    assert student.head_parameters == channels * embed_dim + 2 * embed_dim + 9 * embed_dim**2 + embed_dim
    assert student.head_macs == cells * (channels * embed_dim + 9 * embed_dim**2)
    assert student.parameters == student.backbone_parameters + student.head_parameters
    assert student.macs == student.backbone_macs + student.head_macs


@pytest.mark.slow
def test_the_fpn_head_is_a_ninth_of_the_parameters_for_less_than_half_the_work(published: Comparison) -> None:
    fpn = compare_models(["all"], head="fpn")
    assert (published.head, fpn.head) == ("published", "fpn")
    for before, after in zip(published.students, fpn.students, strict=True):
        assert after.backbone_macs == before.backbone_macs
        assert after.head_parameters < before.head_parameters / 8
        assert after.head_macs < before.head_macs / 2


def test_users_file_is_counted_and_sets_the_students_shape(tmp_path: Path) -> None:
    tiny = TinySam3(grid=8)
    path = tmp_path / "sam3.pt"
    write_tiny_sam3(path, tiny=tiny)
    comparison = compare_models(["es_ev_s"], path)
    weights = {key: tensor for key, tensor in tiny_sam3(tiny=tiny).items() if not tensor.is_complex()}
    assert comparison.teacher.parameters == sum(tensor.numel() for tensor in weights.values())
    trunk = "detector.backbone.vision_backbone.trunk."
    assert comparison.teacher.trunk == sum(math.prod(t.shape) for key, t in weights.items() if key.startswith(trunk))
    assert comparison.teacher.image_size == 8 * 14
    assert comparison.students[0].head_parameters == 128 * 64 + 2 * 64 + 9 * 64 * 64 + 64
    assert in_millions(comparison.students[0].backbone_parameters) == 0.68


def test_names_are_kept_once_in_their_order() -> None:
    assert select_students(["es_tv_l", "es_ev_s", "es_tv_l"]) == ["es_tv_l", "es_ev_s"]
    assert set(select_students(["all"])) == set(STUDENTS)


def test_unknown_name_is_refused_before_anything_is_counted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"es_xx_s.*es_rv_m"):
        compare_models(["es_xx_s"], tmp_path / "missing.pt")


def test_other_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "student.pt"
    torch.save({"model": {"backbone.stem.weight": torch.zeros(1)}}, path)
    with pytest.raises(UserError, match=r"no tensors under detector\.backbone"):
        compare_models(["es_ev_s"], path)
