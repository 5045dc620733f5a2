"""What `evaluate` is asked to measure."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from efficientsam3.data.split import Split
from efficientsam3.evaluate.masks.objects import PromptKind
from efficientsam3.runtime.device import DeviceName
from efficientsam3.runtime.request import Argument, CountOrZero, File, Folder, Overwrite, Request
from efficientsam3.sam3.holes import MAX_HOLE_AREA

Resize = Literal["teacher", "square", "pad"]
Mean = Literal["teacher", "half", "imagenet"]


class EvaluationRequest(Request):
    """Which models are measured, on what, and where the results go."""

    models: Annotated[list[str], Argument("[NAME=]MODEL", positional=True)] = Field(
        description="a merged EfficientSAM3 or SAM3 (.pt, Hugging Face directory, or what export-onnx wrote, as "
        "DIR:int8 with that image encoder); with --decoder also ckpt_epoch_N.pth, an embedding store, an .onnx image "
        "encoder, or a baseline: `zeros` or `random` (noise); the first is the teacher, whose share the others reach"
    )
    data: Folder = Field(
        description="annotated images: an SA-1B folder, a COCO folder, or a .json of COCO, LVIS or SA-Co"
    )
    annotators: Annotated[list[Path], Argument("FILE")] = Field(
        [],
        description="the same images of SA-Co Gold by other annotators, of whom the most favourable counts",
    )
    negatives: CountOrZero = Field(
        2,
        description="with --prompt text, ask N phrases that are not in an image, chosen by --seed; those that a SA-Co "
        "file asks are always asked",
    )
    split: Split = Field("val", description="which part of a folder")
    images: Folder | None = Field(None, description="where the images of a .json are, unless where COCO has them")
    prompt: list[PromptKind] = Field(
        ["box", "point"],
        description="what is asked for each object: its true box, the box with 10 % noise (jitter), a point inside "
        "it, its box's centre, the last of 1, 3 or 5 clicks on what is wrong, its category's name",
    )
    explain: bool = Field(
        False,
        description="exchange parts of the features of the first and the last model that is no baseline, and say which "
        "carry the gap in mIoU; every part costs 2 masks for each object and prompt",
    )
    decoder: File | None = Field(
        None, description="decodes the embeddings of models without a decoder: SAM's decoder as .onnx, or a SAM3"
    )
    out: Folder = Field(Path("output/evaluate"), description="where results.json and report.html go")
    run: Annotated[list[Path], Argument("DIR", action="append")] = Field(
        [],
        description="a training's folder, whose curves the report shows; those of a training whose ckpt_epoch_N.pth is "
        "measured are always shown",
    )
    min_area: Annotated[CountOrZero, Argument("PIXELS")] = Field(0, description="skip objects smaller than this")
    max_images: CountOrZero = Field(0, description="measure N images, chosen by --seed (default: all)")
    max_objects: CountOrZero = Field(0, description="measure N objects an image, chosen by --seed (default: all)")
    seed: CountOrZero = Field(0, description="chooses images, objects, noise and resamplings")
    resize: Resize = Field(
        "teacher",
        description="how images become the encoders' input: teacher, the default, as each was trained; anything else "
        "is a mismatch on purpose",
    )
    mean: Mean = Field("teacher", description="mean and standard deviation of the input's pixels, likewise")
    max_hole_area: Annotated[CountOrZero, Argument("PIXELS")] = Field(
        MAX_HOLE_AREA,
        description="fill holes of so many low-resolution pixels or fewer in a SAM3's masks of boxes and points, as "
        "Meta's code does; 0 fills none",
    )
    device: DeviceName = "auto"
    overwrite: Overwrite = False

    @field_validator("prompt")
    @classmethod
    def _each_once(cls, prompts: list[PromptKind]) -> list[PromptKind]:
        return list(dict.fromkeys(prompts))
