"""Text students out of the files that others wrote."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from efficientsam3.checkpoints.sam3_keys import TEXT_PREFIX
from efficientsam3.checkpoints.text_keys import to_native_text
from efficientsam3.models.text_student import TextStudent
from efficientsam3.models.text_student_files import load_text_student, read_text_student
from efficientsam3.models.text_students import TEXT_STUDENTS, TextArchitecture, TextShape
from efficientsam3.runtime.errors import UserError

Published = tuple[TextStudent, dict[str, torch.Tensor]]


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Published:
    """A small student under a name of its own, with its tensors under the published names."""
    monkeypatch.setitem(TEXT_STUDENTS, "small", TextShape(32, 3, 4, True))
    monkeypatch.setitem(TEXT_STUDENTS, "plain", TextShape(32, 3, 4, False))
    student = TextStudent(TextArchitecture("small", 16, 8, "published")).eval()
    return student, to_native_text(student.state_dict())


@pytest.mark.parametrize("prefix", ["", TEXT_PREFIX])
def test_a_published_file_is_read_alone_and_out_of_a_whole_model(
    published: Published, prefix: str, tmp_path: Path
) -> None:
    student, native = published
    architecture = student.architecture
    others = {"detector.backbone.vision_backbone.trunk.pos_embed": torch.zeros(1)} if prefix else {}
    torch.save({"model": {prefix + key: value for key, value in native.items()} | others}, tmp_path / "text.pt")
    found, state = read_text_student(tmp_path / "text.pt")
    assert found == architecture
    assert state.keys() == TextStudent(architecture).state_dict().keys()
    ids = torch.tensor([[49406, 320, 1929, 49407, 0, 0, 0, 0]])
    with torch.inference_mode():
        assert torch.equal(load_text_student(tmp_path / "text.pt")(ids), student(ids))


def test_a_transformer_alone_is_told_from_one_with_convolutions(published: Published, tmp_path: Path) -> None:
    architecture = replace(published[0].architecture, backbone="plain")
    torch.save(to_native_text(TextStudent(architecture).state_dict()), tmp_path / "text.pt")
    assert read_text_student(tmp_path / "text.pt")[0] == architecture


@pytest.mark.parametrize(
    ("key", "shape", "named"),
    [
        ("encoder.embedding_layer.weight", (49408, 24), "a width of 24 and 3 layers, as none of mobileclip_s0, "),
        ("encoder.positional_embedding.pos_embed.pos_embed", (1, 1, 77, 32), "context_length"),
        ("encoder.final_layer_norm.bias", (31,), "does not fit small"),
        ("projector.weight", None, "holds no text student: give a ckpt_epoch_N.pth"),
        ("text.weight", (1,), "holds no text student: give a ckpt_epoch_N.pth"),
    ],
)
def test_what_is_no_whole_named_student_is_refused(
    published: Published,
    key: str,
    shape: tuple[int, ...] | None,
    named: str,
    tmp_path: Path,
) -> None:
    tensors = dict(published[1])
    tensors.pop(key, None)
    if shape is not None:
        tensors[key] = torch.zeros(shape)
    torch.save(tensors, tmp_path / "text.pt")
    with pytest.raises(UserError, match=named):
        read_text_student(tmp_path / "text.pt")
