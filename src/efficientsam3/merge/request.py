"""What `merge` and `fuse` are asked to do."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from efficientsam3.checkpoints.sam3_keys import STUDENT_PREFIX
from efficientsam3.checkpoints.sam3_tensors import TRUNK_PREFIX
from efficientsam3.runtime.request import Argument, File, FileOrFolder, Overwrite, Request
from efficientsam3.sam3.parts import PARTS

Format = Literal["native", "hf"]


def _split(parts: str | Iterable[str]) -> tuple[str, ...]:
    """The names in `image,text`, or in several such texts."""
    texts = [parts] if isinstance(parts, str) else parts
    return tuple(part.strip() for text in texts for part in text.split(","))


def _dtype_name(value: Any) -> str | None:
    """The name of a `torch.dtype`, or a name as it is."""
    return None if value is None else str(value).removeprefix("torch.")


class MergeRequest(Request):
    """Which student to put in the place of the image trunk of which SAM3."""

    student_ckpt: File = Field(
        description="the student: ckpt_epoch_N.pth of training, a published student, or a merged model to take it from"
    )
    sam3_ckpt: FileOrFolder = Field(
        description="SAM3 itself: Meta's sam3.pt, or with --format hf also a Hugging Face directory such as "
        "facebook/sam3"
    )
    output: FileOrFolder = Field(
        description="the file to write (native; its metadata and model card are written next to it as .json and .md), "
        "or the directory (hf)"
    )
    text_ckpt: Annotated[Path | None, Argument("FILE")] = Field(
        None,
        description="also a student of the text encoder, which takes the place of SAM3's: ckpt_epoch_N.pth of "
        "`efficientsam3 text train`, or a published one",
    )
    target_prefix: Annotated[str, Argument("PREFIX")] = Field(
        STUDENT_PREFIX,
        description="prefix of the student's keys in a native file; the default is where the published loader looks",
    )
    replace_prefix: Annotated[str, Argument("PREFIX")] = Field(
        TRUNK_PREFIX,
        description="SAM3's tensors under this prefix are replaced; the default is the whole image trunk",
    )
    format: Format = Field(
        "native",
        description="native: one .pt file for Meta's and the published EfficientSAM3 code; hf: a directory for "
        "transformers' Sam3Model and Sam3TrackerModel",
    )
    dtype: Annotated[Literal["float32", "float16", "bfloat16"] | None, BeforeValidator(_dtype_name)] = Field(
        None, description="store all weights in this precision; by default each keeps its own, bit by bit"
    )
    keep: Annotated[tuple[str, ...], BeforeValidator(_split), Argument("PARTS", action="split")] = Field(
        tuple(PARTS),
        description="comma-separated parts of SAM3 to keep, by default all of them. "
        + "; ".join(f"{part}: {meaning}" for part, meaning in PARTS.items()),
    )
    fuse: bool = Field(False, description="fuse the student for inference, as `efficientsam3 fuse` does; see there")
    dry_run: bool = Field(False, description="check everything and print where each tensor goes; write nothing")
    overwrite: Overwrite = False


class FuseRequest(Request):
    """Which model to fuse for inference."""

    model: Annotated[Path, Argument("MODEL", positional=True)] = Field(
        description="an EfficientSAM3, .pt or Hugging Face directory"
    )
    output: FileOrFolder = Field(
        description="what to write, of the same kind. The convolutions of its student take in the BatchNorms that "
        "follow them, and RepViT's parallel branches become one convolution each: the same answers but for rounding "
        "(checked to 1e-4), no longer trainable, and not for the published loader"
    )
    overwrite: Overwrite = False
