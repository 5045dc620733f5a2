"""Fusing a merged model: the same answers from fewer tensors, and no way to train it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from efficientsam3 import EfficientSAM3
from efficientsam3.checkpoints.reading import read_tensors
from efficientsam3.checkpoints.sam3_keys import STUDENT_PREFIX
from efficientsam3.cli import main
from efficientsam3.merge import fuse as fuse_module
from efficientsam3.merge.fuse import fuse
from efficientsam3.merge.run import merge
from efficientsam3.models.build import build_student
from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.runtime.errors import UserError

Make = Callable[..., Path]
IMAGE = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def answers(path: Path) -> list[torch.Tensor]:
    image = EfficientSAM3.from_pretrained(path, device="cpu").encode(IMAGE)
    found = image.segment(points=[(30, 40)], candidates=True)
    return [image.embedding, found.scores]


def alike(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(bool((a - b).abs().max() <= 1e-4 * b.abs().max()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("backbone", "head", "format"),
    [
        ("repvit_m0_9", "published", "native"),
        ("tiny_vit_5m", "fpn", "hf"),
        ("efficientvit_b0", "published", "hf"),
        ("efficientvit_b0", "fpn", "native"),
        ("timm/resnet10t", "published", "native"),
    ],
)
def test_a_fused_model_answers_as_the_unfused_one(
    backbone: str, head: str, format: str, tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path
) -> None:
    plain, fused, merged = tmp_path / "plain.pt", tmp_path / "fused.pt", tmp_path / "merged.pt"
    merge(student_checkpoint(backbone, head), tiny_sam3_path, plain, format=format)
    account = fuse(plain, fused)
    again = merge(student_checkpoint(backbone, head), tiny_sam3_path, merged, format=format, fuse=True)
    assert account.student_tensors == again.student_tensors < account.removed_tensors
    assert "is fused" in " ".join(account.lines())
    expected = answers(plain)
    assert alike(answers(fused), expected)
    assert alike(answers(merged), expected)
    tensors = read_tensors(fused)
    assert not any(key.endswith("running_mean") and "student" in key for key in tensors)
    assert all(
        torch.equal(value, tensors[key])
        for key, value in read_tensors(plain).items()
        if "student" not in key and not key.startswith(STUDENT_PREFIX)
    )


def test_a_native_one_is_known_by_its_tensors_too(
    tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path
) -> None:
    merge(student_checkpoint("repvit_m0_9"), tiny_sam3_path, tmp_path / "fused.pt", fuse=True)
    expected = answers(tmp_path / "fused.pt")
    metadata = json.loads((tmp_path / "fused.pt.json").read_text())
    assert metadata["architecture"].pop("fused")
    (tmp_path / "fused.pt.json").write_text(json.dumps(metadata))
    assert all(torch.equal(a, b) for a, b in zip(expected, answers(tmp_path / "fused.pt"), strict=True))


@pytest.mark.parametrize("keep", [("image",), ("tracker",)])
def test_parts_that_were_left_out_stay_so(
    keep: tuple[str, ...], tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path
) -> None:
    merge(student_checkpoint(), tiny_sam3_path, tmp_path / "plain.pt", keep=keep)
    fuse(tmp_path / "plain.pt", tmp_path / "fused.pt")
    assert json.loads((tmp_path / "fused.pt.json").read_text())["parts"] == list(keep)
    plain, fused = read_tensors(tmp_path / "plain.pt"), read_tensors(tmp_path / "fused.pt")
    rest = {key: value for key, value in plain.items() if not key.startswith(STUDENT_PREFIX)}
    assert rest.keys() == {key for key in fused if not key.startswith(STUDENT_PREFIX)}
    assert all(torch.equal(value, fused[key]) for key, value in rest.items())


def test_a_fused_student_cannot_be_trained(tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path) -> None:
    path = tmp_path / "fused.pt"
    merge(student_checkpoint(), tiny_sam3_path, path, fuse=True)
    architecture = StudentArchitecture("efficientvit_b0", 64, 16, 224)
    with pytest.raises(UserError, match="fused, for inference alone"):
        Student(StudentArchitecture("efficientvit_b0", 64, 16, 224, fused=True)).train()
    with pytest.raises(UserError, match="holds a fused student"):
        build_student(architecture, path)


def test_what_has_nothing_to_fuse_is_refused(tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path) -> None:
    merge(student_checkpoint(), tiny_sam3_path, tmp_path / "fused.pt", fuse=True)
    with pytest.raises(UserError, match="fused already"):
        fuse(tmp_path / "fused.pt", tmp_path / "twice.pt")
    with pytest.raises(UserError, match="no student"):
        fuse(tiny_sam3_path, tmp_path / "twice.pt")
    assert not (tmp_path / "twice.pt").exists()


def test_a_difference_beyond_rounding_is_refused(
    tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuse_module, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match="Fusing changes"):
        merge(student_checkpoint(), tiny_sam3_path, tmp_path / "fused.pt", fuse=True)
    assert not (tmp_path / "fused.pt").exists()


def test_the_command(
    tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merge(student_checkpoint(), tiny_sam3_path, tmp_path / "plain.pt")
    assert main(["fuse", str(tmp_path / "plain.pt"), "--output", str(tmp_path / "fused.pt")]) == 0
    assert "the student before fusing" in capsys.readouterr().out
    assert main(["fuse", str(tmp_path / "plain.pt"), "--output", str(tmp_path / "plain.pt")]) == 2
    assert "would be lost" in capsys.readouterr().err
