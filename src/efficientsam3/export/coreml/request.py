"""The request of `export-coreml`: every option, described once. No PyTorch."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from efficientsam3.runtime.request import Argument, Overwrite, Request

Precision = Literal["fp16", "fp32"]


class ExportCoremlRequest(Request):
    """Export a model's image encoder as a CoreML package."""

    model: Annotated[Path, Argument("MODEL", positional=True)] = Field(
        description="a merged .pt file, a Hugging Face directory, plain SAM3, or a training's ckpt_epoch_N.pth"
    )
    out: Annotated[Path, Argument("ENCODER.mlpackage")] = Field(
        description="the package to write; what an earlier export wrote there is replaced"
    )
    precision: Precision = Field(
        "fp16",
        description="fp16 for the Neural Engine and half the size, except for the operations whose values would "
        "overflow; fp32 for equality with PyTorch",
    )
    images: Annotated[Path | None, Argument("DIR", aliases=("--pictures",))] = Field(
        None,
        description="images on which fp16's limit is watched and, on macOS, the package is compared with PyTorch, the "
        "first ten by name (default: two made-up ones)",
    )
    overwrite: Overwrite = False
