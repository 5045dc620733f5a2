"""`model.json`: what an ONNX directory holds and how to feed it. Read without PyTorch."""

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.runtime.errors import UserError

MANIFEST = "model.json"
TOKENIZER = "tokenizer.json"
# What a neck gives and its prompt decoder takes: levels of 4, 2 and 1 cells per cell of the embedding.
DETECTOR_LEVELS = ("detector_features_0", "detector_features_1", "detector_features_2")
INTERACTIVE_LEVELS = ("interactive_features_0", "interactive_features_1", "interactive_features_2")

GraphName = Literal["image_encoder", "text_encoder", "detector_neck", "detector", "interactive_neck", "interactive"]
Variant = Literal["fp16", "int8"]  # of the image encoder


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Port(_Record):
    """An input or output of a graph."""

    name: str
    dtype: str = Field(description="of ONNX's tensor types: float, int64")
    shape: tuple[int | str, ...] = Field(description="a name where the length is free")


class GraphFile(_Record):
    """One ONNX file."""

    file: str
    bytes: int
    sha256: str
    opset: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    measured: dict[str, float] = Field(description="against PyTorch on the same inputs, the worst of all pictures")
    fp32_nodes: tuple[str, ...] = Field((), description="of a variant: nodes left in float32")


class TokenizerFile(_Record):
    """How a phrase becomes token ids: CLIP's, padded."""

    file: str = TOKENIZER
    context_length: int
    pad_id: int


class Manifest(_Record):
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
    pictures: tuple[str, ...] = Field(description="names of what it was measured on")
    versions: dict[str, str]


def read_manifest(directory: Path) -> Manifest:
    """Read `model.json`.

    Raises:
        UserError: it is missing or not understood.
    """
    path = directory / MANIFEST
    try:
        return Manifest(**json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give what export-onnx wrote.") from error
    except (ValueError, TypeError, ValidationError) as error:
        raise UserError(f"{path} is not understood ({error}): export the model again.") from error


def is_onnx_directory(path: Path) -> bool:
    """Whether `export-onnx` wrote it."""
    return (path / MANIFEST).is_file()
