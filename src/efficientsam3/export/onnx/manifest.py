"""An ONNX directory: `model.json`, which says what it holds and how to feed it, and its graphs. No PyTorch."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.export.ports import GraphName, Port
from efficientsam3.models.onnx_session import open_onnx
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import require_file, sha256_file
from efficientsam3.runtime.json_files import parse, read_json_object

MANIFEST = "model.json"
TOKENIZER = "tokenizer.json"
_REMEDY = "export the model again"
Variant = Literal["fp16", "int8"]  # of the image encoder


def _in_its_folder(name: str) -> str:
    """A manifest of unknown origin could name any file of this machine."""
    if not name or name != Path(name).name or "\\" in name or name == "..":
        raise ValueError(f"it names {name!r}, outside its folder")
    return name


_FileName = Annotated[str, AfterValidator(_in_its_folder)]
_Count = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class GraphFile(_Record):
    """One ONNX file."""

    file: _FileName
    bytes: _Count
    sha256: str
    opset: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    measured: dict[str, float] = Field(description="against PyTorch on the same inputs, the worst of all images")
    fp32_nodes: tuple[str, ...] = Field((), description="of a variant: nodes that stay in float32")


class TokenizerFile(_Record):
    """How a phrase becomes token ids: CLIP's, padded."""

    file: _FileName = TOKENIZER
    context_length: Annotated[int, Field(gt=1, le=1 << 12)]
    pad_id: _Count


class OnnxManifest(_Record):
    """All of `model.json`."""

    format_version: Literal[1] = 1
    source: str = Field(description="name of the model that was exported")
    preprocessing: Preprocessing
    tokenizer: TokenizerFile | None = Field(description="None without a text encoder")
    visual_prompt: tuple[tuple[float, ...], ...] | None = Field(
        description="features (3, width) of the prompt for boxes alone, where there is a detector but no text encoder"
    )
    graphs: dict[GraphName, GraphFile]
    variants: dict[Variant, GraphFile] = Field({}, description="of the image encoder")
    pictures: tuple[str, ...] = Field(description="names of the images that it was measured on")
    versions: dict[str, str]

    @model_validator(mode="after")
    def _takes_its_images(self) -> Self:
        encoder, side = self.graphs.get("image_encoder"), self.preprocessing.image_size
        for port in encoder.inputs if encoder else ():
            if port.shape[1:] != (3, side, side):
                raise ValueError(f"the image encoder takes {port.shape}, not images of {side} pixels")
        return self


def read_onnx_manifest(directory: Path) -> OnnxManifest:
    """Read `model.json`.

    Raises:
        UserError: the file is missing or not understood.
    """
    path = directory / MANIFEST
    return parse(OnnxManifest, read_json_object(path, "give what export-onnx wrote"), str(path), _REMEDY)


def open_exported(directory: Path, file: GraphFile) -> Any:
    """An onnxruntime session of a graph that `model.json` names, on the CPU. Comparing it takes 0.2 s for 100 MB.

    Raises:
        UserError: the file is missing, not the one that was exported, or broken; or onnxruntime is not installed.
    """
    path = require_file(directory / file.file, "ONNX graph", _REMEDY)
    if sha256_file(path) != file.sha256:
        raise UserError(
            f"ONNX graph {path} is not the one whose SHA-256 is in {MANIFEST}: {_REMEDY}, or copy it whole once more."
        )
    session = open_graph(path)
    for kind, values, ports in (
        ("inputs", session.get_inputs(), file.inputs),
        ("outputs", session.get_outputs(), file.outputs),
    ):
        found, expected = ({each.name for each in group} for group in (values, ports))
        if found != expected:
            raise UserError(
                f"ONNX graph {path} has the {kind} {', '.join(sorted(found))}, where {MANIFEST} says "
                f"{', '.join(sorted(expected))}: {_REMEDY}."
            )
    return session


def open_graph(path: Path) -> Any:
    """An onnxruntime session of one of the graphs, on the CPU.

    Raises:
        UserError: the file is missing or broken, or onnxruntime is not installed.
    """
    return open_onnx(path, "ONNX graph", _REMEDY)


def is_onnx_directory(path: Path) -> bool:
    """Whether `export-onnx` wrote the directory."""
    return (path / MANIFEST).is_file()
