"""The trtexec line of docs/onnx.md is one that trtexec's parser takes, for a file that `export-onnx` writes.

trtexec itself needs a GPU. Its flags and their forms are those of NVIDIA/TensorRT's samples/common/sampleOptions.cpp,
as of 11.1.0.106 (commit d588328), all of them in 10.x too (`trtexec --help`): FLAG=VALUE without blanks; what it does
not know ends it; shapes are NAME:AxBxC, comma-separated; of --minShapes, --optShapes and --maxShapes all or the second.
Precision flags (--fp16, --int8, --best and so on) went with 11.0, in which every network is strongly typed and
--stronglyTyped is still taken, without effect:
docs.nvidia.com/deeplearning/tensorrt/11.0.0/api/migration/tensorrt-10x-to-11x-trtexec.html.
"""

import re
import shlex
from pathlib import Path

import onnx
import pytest

from efficientsam3.data.preprocess import SAM3_PREPROCESSING
from efficientsam3.export.onnx.manifest import GraphFile, read_onnx_manifest

WITH_VALUE = {
    *("--onnx", "--saveEngine", "--minShapes", "--optShapes", "--maxShapes", "--shapes", "--memPoolSize"),
    *("--timingCacheFile", "--builderOptimizationLevel", "--device", "--profilingVerbosity"),
}
WITHOUT_VALUE = {"--stronglyTyped", "--skipInference", "--noTF32", "--versionCompatible", "--verbose"}
SHAPES = ("--minShapes", "--optShapes", "--maxShapes")


def documented_line(repository: Path) -> str:
    text = (repository / "docs/onnx.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^    (trtexec .*)$", text, re.MULTILINE)
    return str(line)


def parse_flags(line: str) -> dict[str, str]:
    """As trtexec does; fails on what it would refuse."""
    program, *words = shlex.split(line)
    assert program == "trtexec"
    flags: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        assert name in WITH_VALUE | WITHOUT_VALUE, name
        assert (name in WITH_VALUE) == bool(equals and value), word
        assert name not in flags, name
        flags[name] = value
    return flags


def parse_shapes(spec: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for each in spec.split(","):
        match = re.fullmatch(r"([\w.]+):([1-9]\d*(?:x[1-9]\d*)*)", each)
        assert match, each
        assert match[1] not in shapes
        shapes[match[1]] = tuple(int(length) for length in match[2].split("x"))
    return shapes


def check_line(line: str, graph: GraphFile, image_size: int) -> None:
    """Fail unless the line builds this graph, were it of a full-size model."""
    flags = parse_flags(line)
    assert Path(flags["--onnx"]).name == graph.file
    assert Path(flags["--saveEngine"]).suffix == ".engine"
    assert "--stronglyTyped" in flags  # 10.x would put float32 nodes into float16 otherwise
    assert [flag for flag in flags if flag in SHAPES] == list(SHAPES)
    ranges = [parse_shapes(flags[flag]) for flag in SHAPES]
    for each in ranges:
        assert set(each) == {port.name for port in graph.inputs}
    for port in graph.inputs:
        least, best, most = (each[port.name] for each in ranges)
        assert len(least) == len(best) == len(most) == len(port.shape)
        for length, a, b, c in zip(port.shape, least, best, most, strict=True):
            if isinstance(length, str):
                assert a <= b <= c
            else:
                assert {a, b, c} == {SAM3_PREPROCESSING.image_size if length == image_size else length}


@pytest.fixture(scope="module")
def graph(with_variants: Path) -> tuple[GraphFile, int]:
    """The float16 encoder of a small model, and its input's side."""
    manifest = read_onnx_manifest(with_variants)
    return manifest.variants["fp16"], manifest.preprocessing.image_size


def test_the_documented_line_builds_what_export_writes(graph: tuple[GraphFile, int], repository: Path) -> None:
    check_line(documented_line(repository), *graph)


def test_its_input_has_the_name_and_lengths_of_the_file(graph: tuple[GraphFile, int], with_variants: Path) -> None:
    """Strong typing takes types from the file: its input must be the float32 that the line says nothing of."""
    (value,) = onnx.load(with_variants / graph[0].file).graph.input
    (port,) = graph[0].inputs
    assert value.name == port.name
    assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim) == port.shape


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--stronglyTyped", "--fp16"),
        ("--stronglyTyped", ""),
        ("--stronglyTyped", "--stronglyTyped=1"),
        ("--stronglyTyped", "--strongly-typed"),
        ("--stronglyTyped", "--stronglyTyped --workspace=1024"),
        ("--saveEngine=", "--saveEngine "),
        ("--minShapes=pixels:1x3x1008x1008 ", ""),
        ("--minShapes=pixels:1", "--minShapes=pixels:2"),
        ("--maxShapes=pixels:8", "--maxShapes=pixels:0"),
        ("--optShapes=pixels:1x3x1008x1008", "--optShapes=pixels:1x3x1024x1024"),
        ("--optShapes=pixels:1x3", "--optShapes=pixels:1x1"),
        ("--optShapes=pixels:1x3x1008x1008", "--optShapes=pixels:3x1008x1008"),
        ("--optShapes=pixels:", "--optShapes=pixels="),
        ("--optShapes=pixels:1x3x1008x1008", "--optShapes=pixels:1,3,1008,1008"),
        ("pixels:", "image:"),
        ("image_encoder_fp16.onnx", "image_encoder.onnx"),
        ("image_encoder_fp16.onnx", "image_encoder_half.onnx"),
    ],
)
def test_a_line_that_trtexec_would_refuse_is_noticed(
    old: str, new: str, graph: tuple[GraphFile, int], repository: Path
) -> None:
    line = documented_line(repository)
    assert old in line
    with pytest.raises((AssertionError, KeyError)):
        check_line(line.replace(old, new), *graph)
