"""Text students: their sizes, what padding does to them, and their published names."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from efficientsam3.checkpoints.text_keys import from_native_text, to_native_text
from efficientsam3.models.text_student import TextStudent
from efficientsam3.models.text_students import END, TEXT_STUDENTS, Padding, TextArchitecture, pad_token, text_shape
from efficientsam3.models.text_tokens import valid_tokens
from efficientsam3.runtime.errors import UserError

KEYS = Path(__file__).parents[2] / "data" / "text_student_keys.txt"
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize(
    ("name", "length", "encoder", "whole"),
    [
        ("mobileclip_s0", 16, 42_409_984, 42_541_312),
        ("mobileclip_s1", 16, 63_396_864, 63_528_192),
        ("mobileclip2_l", 16, 123_603_456, 123_800_320),
        ("mobileclip_s0", 32, 42_418_176, 42_549_504),
    ],
)
def test_the_published_students_have_the_published_sizes(name: str, length: int, encoder: int, whole: int) -> None:
    with torch.device("meta"):
        student = TextStudent(TextArchitecture(name, context_length=length))
    assert sum(parameter.numel() for parameter in student.encoder.parameters()) == encoder
    assert sum(parameter.numel() for parameter in student.parameters()) == whole
    unused = [key for key, parameter in student.named_parameters() if not parameter.requires_grad]
    assert unused == ["encoder.projection.weight"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mobileclip_s9", "is not known: use one of mobileclip_s0, mobileclip_s1, mobileclip2_l"),
        ("base/30x2x4", "4 heads do not divide a width of 30"),
        ("mct/32x1x2", "mct has 2 layers at least"),
    ],
)
def test_an_impossible_student_is_refused(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        text_shape(name)


def tokens(length: int, pad: int) -> torch.Tensor:
    ids = torch.full((2, length), pad)
    ids[0, :4] = torch.tensor([49406, 320, 1929, END])
    ids[1, :6] = torch.tensor([49406, 320, 736, 0, 1929, END])  # token 0 is "!"
    return ids


@pytest.mark.parametrize("padding", ["transformers", "published"])
def test_valid_tokens_end_with_the_first_end_whatever_fills_the_rest(padding: Padding) -> None:
    assert valid_tokens(tokens(8, pad_token(padding))).sum(1).tolist() == [4, 6]


def student(backbone: str, length: int, padding: Padding) -> TextStudent:
    torch.manual_seed(0)
    return TextStudent(TextArchitecture(backbone, 8, length, padding)).eval()


@torch.inference_mode()
def test_attention_sees_padding_only_where_the_published_code_lets_it() -> None:
    """Masked, a transformer's answer does not depend on how many positions are filled; unmasked, it does."""
    for padding, same in (("transformers", True), ("published", False)):
        long = student("base/32x2x2", 16, padding)
        short = student("base/32x2x2", 8, padding)
        state = long.state_dict()
        position = "encoder.embeddings.position_embedding.position_embedding"
        short.load_state_dict(state | {position: state[position][:, :, :8]})
        ids = tokens(16, pad_token(padding))
        one, other = long(ids)[..., :4], short(ids[:, :8])[..., :4]
        assert torch.allclose(one, other, atol=1e-5) == same


def expected_keys(backbone: str) -> Iterator[tuple[str, list[str]]]:
    """Published names and transformers' of a student, by the table in `tests/data`."""
    shape = text_shape(backbone)
    section = ""
    for line in KEYS.read_text().splitlines():
        if line.startswith("#"):
            section = line.removeprefix("# ")
            continue
        native, other = line.split("\t")
        ends = {0, shape.layers - 1} if shape.convolutional else set()
        layers = {"transformer": set(range(shape.layers)) - ends, "convolutions": ends}.get(section, {0})
        for layer in layers:
            for name in _BATCH_NORM if "{BN}" in line else ("",):
                parts = "qkv" if "{qkv}" in other else "-"
                places = [other.replace("{qkv}", part) for part in parts]
                yield (
                    native.replace("{N}", str(layer)).replace("{BN}", name),
                    [place.replace("{N}", str(layer)).replace("{BN}", name) for place in places],
                )


@pytest.mark.parametrize("backbone", [*TEXT_STUDENTS, "mct/32x4x2"])
def test_published_names_are_those_of_the_table_both_ways(backbone: str) -> None:
    table = dict(expected_keys(backbone))
    with torch.device("meta"):
        state = TextStudent(TextArchitecture(backbone)).state_dict()
    assert set(to_native_text(state)) == set(table)
    prefixes = {"encoder.": "text_encoder.", "projector.": "text_projection."}
    renamed = {prefixes[own] + key.removeprefix(own) for own in prefixes for key in state if key.startswith(own)}
    assert renamed == {place for places in table.values() for place in places}


def test_values_come_back_from_the_published_names() -> None:
    state = student("mct/32x3x2", 16, "transformers").state_dict()
    native = to_native_text(state)
    query = state["encoder.layers.1.self_attn.q_proj.weight"]
    assert torch.equal(native["encoder.transformer.1.pre_norm_mha.1.qkv_proj.weight"][:32], query)
    back = from_native_text(native)
    assert set(back) == set(state)
    assert all(torch.equal(back[key], value) for key, value in state.items())


def test_a_foreign_tensor_among_the_published_names_is_refused() -> None:
    with pytest.raises(UserError, match="is not a tensor of SAM3"):
        from_native_text({"decoder.weight": torch.zeros(1)})
