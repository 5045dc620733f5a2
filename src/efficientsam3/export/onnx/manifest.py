"""An ONNX directory: `model.json`, which says what it holds and how to feed it, and its graphs. No PyTorch."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.export.ports import GraphName, Port
from efficientsam3.models.onnx_session import open_onnx
from efficientsam3.runtime.errors import UserError

MANIFEST = "model.json"
TOKENIZER = "tokenizer.json"
Variant = Literal["fp16", "int8"]  # of the image encoder


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GraphFile(_Record):
    """One ONNX file."""

    file: str
    bytes: int
    sha256: str
    opset: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    measured: dict[str, float] = Field(description="against PyTorch on the same inputs, the worst of all images")
    fp32_nodes: tuple[str, ...] = Field((), description="of a variant: nodes that stay in float32")


class TokenizerFile(_Record):
    """How a phrase becomes token ids: CLIP's, padded."""

    file: str = TOKENIZER
    context_length: int
    pad_id: int


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


def read_onnx_manifest(directory: Path) -> OnnxManifest:
    """Read `model.json`.

    Raises:
        UserError: the file is missing or not understood.
    """
    path = directory / MANIFEST
    try:
        return OnnxManifest(**json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give what export-onnx wrote.") from error
    except (ValueError, TypeError, ValidationError) as error:
        raise UserError(f"{path} is not understood ({error}): export the model again.") from error


def open_graph(path: Path) -> Any:
    """An onnxruntime session of one of the graphs, on the CPU.

    Raises:
        UserError: the file is missing or broken, or onnxruntime is not installed.
    """
    return open_onnx(path, "ONNX graph", "export the model again")


def is_onnx_directory(path: Path) -> bool:
    """Whether `export-onnx` wrote the directory."""
    return (path / MANIFEST).is_file()
