"""CoreML packages: that they compute the same, what stays in float32, what they declare, and what is refused.

On Linux PyTorch computes the package's operations (`mil_by_torch`), from the file; on a Mac CoreML does too.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import pytest
import torch
from timm.models.efficientvit_mit import LiteMLA
from torch import nn

from efficientsam3.cli import main
from efficientsam3.export.coreml import program as mlprogram
from efficientsam3.export.coreml import run as coreml
from efficientsam3.export.coreml.run import NOT_COMPARED, CoremlReport, export_coreml
from efficientsam3.export.graphs import Graph
from efficientsam3.export.source import read_source
from efficientsam3.merge.run import merge
from efficientsam3.models.fuse import fuse_modules
from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.models.students import named_backbones
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.own_files import LIST_NAME, check_folder
from efficientsam3.sam3.contents import read_contents
from unit.export.coreml.mil_by_torch import run_package

Make = Callable[..., Path]
SIDE = 224
ON_LINUX = pytest.mark.skipif(sys.platform == "darwin", reason="a Mac compares")
LINEAR_ATTENTIONS = 4  # of an EfficientViT-B0


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def noise() -> torch.Tensor:
    return torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model(tiny_sam3_path: Path, student_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An EfficientViT-B0 with SAM3's tracker."""
    path = tmp_path_factory.mktemp("coreml") / "points.pt"
    merge(student_checkpoint(head="fpn"), tiny_sam3_path, path, keep=["tracker"])
    return path


@pytest.fixture(scope="module")
def graph(model: Path) -> Graph:
    """The graph of its image encoder."""
    return read_source(model).graphs[0]


@pytest.fixture(scope="module")
def encoder(graph: Graph) -> nn.Module:
    """The same image encoder in PyTorch."""
    return graph.module.eval()


@pytest.fixture(scope="module")
def float32(encoder: nn.Module) -> mlprogram.Program:
    """The encoder converted in float32, not written."""
    return mlprogram.convert_encoder(encoder, SIDE, float16=False, images=[])


@pytest.fixture(scope="module")
def exported(model: Path) -> tuple[Path, CoremlReport]:
    """The encoder exported in float16."""
    path = model.with_name("encoder.mlpackage")
    return path, export_coreml(model, path)


def described(package: Path) -> dict[str, Any]:
    spec = ct.utils.load_spec(str(package))
    found: dict[str, Any] = json.loads(spec.description.metadata.userDefined["efficientsam3"])
    return found


def operations(package: Path) -> list[mlprogram.Operation]:
    return list(mlprogram._operations(ct.utils.load_spec(str(package))))


@torch.no_grad()
def test_float16_computes_nearly_the_same(exported: tuple[Path, CoremlReport], encoder: nn.Module) -> None:
    found = run_package(exported[0], noise())
    assert found.dtype == torch.float32
    assert 1e-5 < relative_error(found, encoder(noise())) < 2e-3


@torch.no_grad()
def test_float32_computes_the_same(float32: mlprogram.Program, encoder: nn.Module, tmp_path: Path) -> None:
    float32.model.save(str(tmp_path / "encoder.mlpackage"))
    assert relative_error(run_package(tmp_path / "encoder.mlpackage", noise()), encoder(noise())) < 1e-5
    assert all(operation.float32 for operation in float32.operations)
    assert float32.kept_names == ()


def test_linear_attention_alone_stays_in_float32(exported: tuple[Path, CoremlReport]) -> None:
    package, report = exported
    kept = [operation for operation in operations(package) if operation.float32]
    for kind, count in {"matmul": 2, "slice_by_index": 2, "add": 1, "real_div": 1}.items():
        assert sum(operation.kind == kind for operation in kept) == count * LINEAR_ATTENTIONS
    assert len(kept) == 6 * LINEAR_ATTENTIONS
    assert report.float32_operations == tuple(operation.name for operation in kept)
    assert report.operations == len(operations(package)) > len(kept)


@torch.no_grad()
def test_its_sums_may_pass_float16s_limit(tmp_path: Path) -> None:
    """Keys and values as large as a trained EfficientViT's: their sums over all cells are far above 65504."""
    torch.manual_seed(0)
    attention = nn.Sequential(nn.Conv2d(3, 16, 1), LiteMLA(16, 16)).eval()
    attention[1].qkv.conv.weight *= 100
    program = mlprogram.convert_encoder(attention, 64, float16=True, images=[])
    program.model.save(str(tmp_path / "large.mlpackage"))
    pixels = noise()[..., :64, :64]
    assert relative_error(run_package(tmp_path / "large.mlpackage", pixels), attention(pixels)) < 1e-2
    assert (attention[1].qkv(attention[0](pixels)).flatten(2).norm(dim=-1) ** 2).max() > 65504


class Steps(nn.Module):
    """Modules in a list, which tracing leaves out of their names."""

    def __init__(self, *steps: nn.Module) -> None:
        super().__init__()
        self.steps: Any = nn.ModuleList(steps)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        for step in self.steps:
            pixels = step(pixels)
        return pixels


@torch.no_grad()
def test_what_comes_near_float16s_limit_stays_in_float32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Steps(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1)), nn.Conv2d(4, 4, 3)).eval()
    network.steps[0].weight *= 1e5
    network.steps[1][1].weight *= 1e-5
    program = mlprogram.convert_encoder(network, 32, float16=True, images=[noise()[..., :32, :32]])
    assert program.kept == {"conv": 2, "relu": 1}  # the last one's values are small
    program.model.save(str(tmp_path / "large.mlpackage"))
    pixels = noise()[..., :32, :32]
    assert relative_error(run_package(tmp_path / "large.mlpackage", pixels), network(pixels)) < 1e-2


def test_the_package_says_how_to_feed_it(exported: tuple[Path, CoremlReport], model: Path) -> None:
    spec = ct.utils.load_spec(str(exported[0]))
    float32 = ct.proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT32
    (pixels,), (embedding,) = spec.description.input, spec.description.output
    assert (pixels.name, list(pixels.type.multiArrayType.shape)) == ("pixels", [1, 3, SIDE, SIDE])
    assert (embedding.name, list(embedding.type.multiArrayType.shape)) == ("embedding", [1, 64, 16, 16])
    assert pixels.type.multiArrayType.dataType == embedding.type.multiArrayType.dataType == float32
    assert spec.specificationVersion == ct._SPECIFICATION_VERSION_IOS_15
    about = described(exported[0])
    assert about["source"] == model.name
    assert about["preprocessing"] == read_contents(model).preprocessing.model_dump(mode="json")
    assert about["precision"] == "fp16"
    assert about["float32_operations"] == list(exported[1].float32_operations)
    assert {"efficientsam3", "torch", "coremltools"} == set(about["versions"])
    assert "SAM licence" in spec.description.metadata.license


def test_every_user_may_read_it(exported: tuple[Path, CoremlReport]) -> None:
    package, report = exported
    files = [path for path in package.rglob("*") if path.is_file()]
    assert report.bytes == sum(path.stat().st_size for path in files)
    assert all(path.stat().st_mode & 0o044 for path in package.rglob("*"))
    assert [path.name for path in package.parent.iterdir() if path.name.startswith(".")] == [LIST_NAME]


@ON_LINUX
def test_where_it_cannot_be_compared_it_says_so(
    exported: tuple[Path, CoremlReport], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exported[1].compared == described(exported[0])["compared"] == NOT_COMPARED
    monkeypatch.setattr("efficientsam3.export.coreml.run.export_coreml", lambda *_, **__: exported[1])
    assert main(["export-coreml", "model.pt", "--out", "encoder.mlpackage"]) == 0
    assert f"24 of them in float32; {NOT_COMPARED}\n" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "darwin", reason="CoreML runs on macOS alone")
def test_a_mac_compares(exported: tuple[Path, CoremlReport]) -> None:
    assert exported[1].compared.startswith("relative error ")
    assert exported[1].compared == described(exported[0])["compared"]


@ON_LINUX
@pytest.mark.parametrize("factor", [1.0, 1.5, float("nan")])
def test_what_a_mac_finds_different_does_not_stay(
    factor: float,
    model: Path,
    encoder: nn.Module,
    float32: mlprogram.Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The Mac's answer is PyTorch's, or another."""

    @torch.no_grad()
    def compute(pixels: Any) -> Any:
        return encoder(torch.from_numpy(pixels)).numpy() * factor

    monkeypatch.setattr(coreml, "convert_encoder", lambda *_, **__: float32)
    monkeypatch.setattr(coreml, "open_package", lambda _: compute)
    monkeypatch.setattr(coreml.sys, "platform", "darwin")
    if factor == 1.0:
        report = export_coreml(model, tmp_path / "encoder.mlpackage", precision="fp32")
        assert report.compared == described(tmp_path / "encoder.mlpackage")["compared"] == "relative error 0"
    else:
        with pytest.raises(UserError, match="differs from PyTorch: relative error"):
            export_coreml(model, tmp_path / "encoder.mlpackage", precision="fp32")
        assert list(tmp_path.iterdir()) == []


def test_a_program_other_than_asked_for_is_refused(exported: tuple[Path, CoremlReport], graph: Graph) -> None:
    package, _ = exported
    found = tuple(operations(package))
    kept = mlprogram.Counter(operation.kind for operation in found if operation.float32)
    program = mlprogram.Program(None, found, kept)
    mlprogram.check_package(package, graph.ports, program)
    (pixels,), (embedding,) = graph.ports
    for ports, other in (
        (((pixels.model_copy(update={"name": "image"}),), (embedding,)), program),
        (((pixels.model_copy(update={"shape": ("batch", 3, 448, 448)}),), (embedding,)), program),
        (((pixels,), (embedding.model_copy(update={"dtype": "int64"}),)), program),
        (graph.ports, mlprogram.Program(None, found[:-1], kept)),
        (graph.ports, mlprogram.Program(None, found, kept + kept)),
    ):
        with pytest.raises(UserError, match="does not declare what was asked for"):
            mlprogram.check_package(package, ports, other)


def test_linear_attention_that_is_not_found_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlprogram, "_SUMS", frozenset())
    attention = nn.Sequential(nn.Conv2d(3, 16, 1), LiteMLA(16, 16)).eval()
    with pytest.raises(UserError, match="overflows float16: give --precision fp32"):
        mlprogram.convert_encoder(attention, 32, float16=True, images=[])


def test_what_cannot_be_converted_is_named() -> None:
    class Strange(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(pixels)

    with pytest.raises(UserError, match="cannot convert this image encoder .*bessel_j0") as refused:
        mlprogram.convert_encoder(Strange(), 32, float16=False, images=[])
    assert "\n" not in str(refused.value)


def test_other_things_are_not_written_over(exported: tuple[Path, CoremlReport], model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must end in \.mlpackage"):
        export_coreml(model, tmp_path / "encoder")
    (tmp_path / "folder.mlpackage").mkdir()
    (tmp_path / "folder.mlpackage" / "thesis.tex").write_text("years", encoding="utf-8")
    with pytest.raises(UserError, match=r"would replace .*thesis\.tex, which efficientsam3 did not write"):
        export_coreml(model, tmp_path / "folder.mlpackage")
    other = tmp_path / "other.mlpackage" / "Data/com.apple.CoreML/model.mlmodel"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"another program's")
    with pytest.raises(UserError, match=r"would replace .*mlmodel, which efficientsam3 did not write"):
        export_coreml(model, tmp_path / "other.mlpackage")
    check_folder(exported[0], coreml._PACKAGE)  # its own may be replaced


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent.pt does not exist"):
        export_coreml(tmp_path / "absent.pt", tmp_path / "encoder.mlpackage")


def test_without_coremltools_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlprogram.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"needs coremltools: run pip install 'efficientsam3\[coreml\]'"):
        export_coreml(tmp_path / "absent.pt", tmp_path / "encoder.mlpackage")


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("head", ["published", "fpn", "fpn4"])
@pytest.mark.parametrize("backbone", sorted(named_backbones()))
@torch.no_grad()
def test_all_students(backbone: str, head: str, fused: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    architecture = StudentArchitecture(backbone, embed_dim=64, embed_size=16, image_size=SIDE, head=head)
    student = Student(architecture).train()
    for _ in range(3):  # BatchNorm's statistics
        student(torch.randn(4, 3, SIDE, SIDE))
    network = fuse_modules(student.eval(), (1, 3, SIDE, SIDE)) if fused else student.eval()
    for float16, limit in ((False, 1e-5), (True, 2e-3)):
        package = tmp_path / f"{float16}.mlpackage"
        mlprogram.convert_encoder(network, SIDE, float16=float16, images=[noise()]).model.save(str(package))
        assert relative_error(run_package(package, noise()), network(noise())) < limit
