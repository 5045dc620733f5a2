"""The request of `export-onnx`: every option, described once. No PyTorch."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from efficientsam3.export.onnx.manifest import Variant
from efficientsam3.runtime.request import Argument, Folder, Overwrite, Request


class ExportOnnxRequest(Request):
    """Export a model as ONNX graphs."""

    model: Annotated[Path, Argument("MODEL", positional=True)] = Field(
        description="a merged .pt file, a Hugging Face directory, or plain SAM3, with the parts that it has; or a "
        "training's ckpt_epoch_N.pth, which gives the image encoder alone"
    )
    out: Folder = Field(
        description="where image_encoder.onnx and the other graphs, model.json and tokenizer.json go; an earlier "
        "export there is replaced"
    )
    variants: tuple[Variant, ...] = Field(
        (),
        description="the image encoder in these precisions too: fp16 for GPUs and phones, int8 for CPUs; what each "
        "costs in accuracy is measured and printed",
    )
    calibrate: Folder | None = Field(
        None,
        description="images like those it will see, up to a hundred, for int8's scales and fp16's limits",
    )
    images: Annotated[Path | None, Argument("DIR", aliases=("--pictures",))] = Field(
        None,
        description="images on which each graph is compared with PyTorch, the first ten by name (default: two made-up "
        "ones)",
    )
    overwrite: Overwrite = False
