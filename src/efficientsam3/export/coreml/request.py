"""The request of `export-coreml`: every option, described once. No PyTorch."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Precision = Literal["fp16", "fp32"]


class ExportCoremlRequest(BaseModel):
    """Export a model's image encoder as a CoreML package."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path = Field(
        description="a merged .pt file, a Hugging Face directory, plain SAM3, or a training's ckpt_epoch_N.pth"
    )
    out: Path = Field(
        description="the package to write, ENCODER.mlpackage; what an earlier export wrote there is replaced"
    )
    precision: Precision = Field(
        "fp16",
        description="fp16 for the Neural Engine and half the size, except for the operations whose values would "
        "overflow; fp32 for equality with PyTorch",
    )
    # Formerly --pictures, which the command still accepts.
    images: Path | None = Field(
        None,
        description="images on which fp16's limit is watched and, on macOS, the package is compared with PyTorch, the "
        "first ten by name (default: two made-up ones)",
    )
