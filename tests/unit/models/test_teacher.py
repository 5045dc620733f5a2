from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from efficientsam3.data.preprocess import SAM3_PREPROCESSING, SAM_PREPROCESSING
from efficientsam3.models.teacher import (
    KINDS,
    Backend,
    Sam3Teacher,
    Teacher,
    TeacherSpec,
    build_teacher,
    check_compiles,
    inspect_teacher,
)
from efficientsam3.runtime.errors import UserError

CPU = torch.device("cpu")


Axes = tuple[str | int, ...]


def write_onnx(
    path: Path, channels: int = 256, grid: int = 64, image: Axes = (1024, 1024), embedding: Axes | None = None
) -> Path:
    """An encoder of 1024-pixel images: a strided 1x1 convolution with known weights, one image at a time.

    `image` and `embedding` are the axes that it declares.
    """
    weight = np.linspace(-1, 1, channels * 3, dtype=np.float32).reshape(channels, 3, 1, 1)
    stride = 1024 // grid
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "weight"], ["embedding"], strides=[stride, stride])],
        "encoder",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["B", 3, *image])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", *(embedding or (channels, grid, grid))])],
        [numpy_helper.from_array(weight, "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_sam3_is_frozen_exact_and_of_the_right_shape(tiny_sam3_path: Path) -> None:
    preprocessing = SAM3_PREPROCESSING.model_copy(update={"image_size": 224})
    spec = inspect_teacher(tiny_sam3_path)
    assert spec == TeacherSpec(tiny_sam3_path, 224, 64, 16, preprocessing)
    assert inspect_teacher(tiny_sam3_path, 224, 64, 16) == spec
    teacher = build_teacher(spec, preprocessing, CPU)
    assert isinstance(teacher, Sam3Teacher)
    assert (teacher.embed_dim, teacher.embed_size) == (64, 16)
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    embedding = teacher(pixels)
    assert embedding.shape == (2, 64, 16, 16)
    assert not embedding.requires_grad
    torch.testing.assert_close(teacher(pixels[1:])[0], embedding[1], rtol=1e-4, atol=1e-4)
    # Cell (row, column) is token row * 16 + column.
    tokens = teacher._trunk(pixels).last_hidden_state
    torch.testing.assert_close(embedding[0, :, 3, 5], tokens[0, 3 * 16 + 5])


@pytest.mark.parametrize(
    ("shape", "named"),
    [((1024, 64, 16), "DATA.IMG_SIZE 1024 .* takes 224 only"), ((224, 64, 72), "64 channels and 16 cells")],
)
def test_sizes_that_do_not_fit_are_refused_before_loading(
    tiny_sam3_path: Path, shape: tuple[int, int, int], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("efficientsam3.checkpoints.sam3.load_trunk", lambda _: pytest.fail("loaded"))
    with pytest.raises(UserError, match=named):
        inspect_teacher(tiny_sam3_path, *shape)


def test_onnx_encoders_run_image_by_image(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "encoder.onnx")
    spec = inspect_teacher(path)
    assert spec == inspect_teacher(path, 1024, 256, 64) == TeacherSpec(path, 1024, 256, 64, SAM_PREPROCESSING)
    assert spec.compute_dtype(torch.device("cuda"), amp=True) == torch.float32
    teacher = build_teacher(spec, SAM_PREPROCESSING, CPU)
    pixels = torch.randn(2, 3, 1024, 1024, generator=torch.Generator().manual_seed(0))
    weight = torch.linspace(-1, 1, 768).reshape(256, 3)
    expected = torch.einsum("dc,bchw->bdhw", weight, pixels[:, :, ::16, ::16])
    torch.testing.assert_close(teacher(pixels), expected, rtol=1e-4, atol=1e-4)


def test_an_onnx_encoder_of_another_shape_must_say_its_preprocessing(tmp_path: Path) -> None:
    assert inspect_teacher(write_onnx(tmp_path / "e.onnx", channels=8)).preprocessing is None


@pytest.mark.parametrize("shape", [(1008, 256, 64), (1024, 255, 64), (1024, 256, 72)])
def test_onnx_shapes_are_checked(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    with pytest.raises(UserError, match="declares"):
        inspect_teacher(write_onnx(tmp_path / "e.onnx"), *shape)


@pytest.mark.parametrize(("image_size", "key"), [(None, "DATA.IMG_SIZE"), (1024, "DISTILL.EMBED_SIZE")])
def test_an_axis_of_any_size_must_be_configured(tmp_path: Path, image_size: int | None, key: str) -> None:
    path = write_onnx(tmp_path / "e.onnx", image=("h", "w"), embedding=(256, "eh", "ew"))
    with pytest.raises(UserError, match=f"does not declare the size of .*: set {key}\\.$"):
        inspect_teacher(path, image_size)
    assert inspect_teacher(path, 1024, 256, 64) == TeacherSpec(path, 1024, 256, 64, SAM_PREPROCESSING)


@pytest.mark.parametrize("name", ["absent.pt", "absent.onnx", "absent"])
def test_a_missing_teacher_is_refused_with_the_remedy(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"MODEL\.RESUME"):
        inspect_teacher(tmp_path / name)


def test_a_broken_onnx_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "e.onnx").write_bytes(b"not a model")
    with pytest.raises(UserError, match="cannot be opened"):
        inspect_teacher(tmp_path / "e.onnx")


def test_the_hash_follows_the_weights(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"a")
    spec = TeacherSpec(tmp_path, 224, 64, 16, None)
    first = spec.sha256()
    (tmp_path / "README.md").write_text("not weights")
    assert spec.sha256() == first
    (tmp_path / "model.safetensors").write_bytes(b"b")
    assert spec.sha256() != first


def test_a_further_kind_of_teacher_is_one_class_and_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Grey(Teacher):
        autocasts = False

        @staticmethod
        def reads(path: Path) -> bool:
            return path.suffix == ".grey"

        @staticmethod
        def inspect(path: Path, image_size: int | None, embed_dim: int | None, embed_size: int | None) -> TeacherSpec:
            return TeacherSpec(path, 8, 3, 2, SAM_PREPROCESSING)

        def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return pixel_values[:, :, ::4, ::4]

    monkeypatch.setattr("efficientsam3.models.teacher.KINDS", (Grey, *KINDS))
    spec = inspect_teacher(tmp_path / "teacher.grey", name="grey")
    assert (spec.image_size, spec.name) == (8, "grey")
    assert build_teacher(spec, SAM_PREPROCESSING, CPU)(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 2, 2)


def compiled(path: Path, batch_size: int, backend: Backend) -> tuple[Teacher, Teacher]:
    """A teacher that is to be compiled, and the same one."""
    spec = inspect_teacher(path)
    assert spec.preprocessing is not None
    first, second = (build_teacher(spec, spec.preprocessing, CPU) for _ in range(2))
    first.compile(batch_size, backend)
    return first, second


def test_a_compiled_teacher_has_one_shape_of_batch_and_gives_the_same(tiny_sam3_path: Path) -> None:
    shapes: list[list[int]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        def forward(*arguments: torch.Tensor) -> Any:
            shapes[number].append(max(len(each) for each in arguments if each.dim() == 4))
            return graph.forward(*arguments)

        number = len(shapes)
        shapes.append([])
        return forward

    teacher, plain = compiled(tiny_sam3_path, 3, backend)
    pixels = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for count in (2, 3, 1):
        embedding = teacher(pixels[:count])
        assert len(embedding) == count
        torch.testing.assert_close(embedding, plain(pixels[:count]), rtol=1e-4, atol=1e-4)
    assert 0 < len(shapes) <= 2, "layers with windows and without"
    assert all(len(set(graph)) == 1 for graph in shapes)


def test_a_compiled_teacher_that_gives_something_else_is_refused_at_its_first_batch(tiny_sam3_path: Path) -> None:
    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        return lambda *arguments: tuple(each * 1.1 for each in graph.forward(*arguments))

    teacher, _ = compiled(tiny_sam3_path, 1, backend)
    with pytest.raises(UserError, match=r"differ by 0\.\d+ .* more than 0\.02: leave .*--compile-teacher.* out"):
        teacher(torch.randn(1, 3, 224, 224))


def test_a_teacher_that_cannot_be_compiled_is_refused_with_the_reason(tiny_sam3_path: Path, tmp_path: Path) -> None:
    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        raise OSError("no C++ compiler")

    teacher, _ = compiled(tiny_sam3_path, 1, backend)
    with pytest.raises(UserError, match=r"cannot be compiled here \(.*no C\+\+ compiler"):
        teacher(torch.randn(1, 3, 224, 224))
    with pytest.raises(UserError, match=r"e\.onnx is not PyTorch's to compile: leave"):
        check_compiles(tmp_path / "e.onnx")


@pytest.mark.slow
def test_inductor_gives_the_same(tiny_sam3_path: Path) -> None:
    teacher, plain = compiled(tiny_sam3_path, 2, "inductor")
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(teacher(pixels), plain(pixels), rtol=1e-4, atol=1e-4)
