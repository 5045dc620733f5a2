"""What `distill` is asked to do."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from efficientsam3.data.layouts import DatasetName
from efficientsam3.models.heads import HEADS, HeadName
from efficientsam3.models.students import STUDENTS
from efficientsam3.runtime.device import DeviceName, usable_cores
from efficientsam3.runtime.request import Argument, Count, CountOrZero, FileOrFolder, Folder, Request, describe
from efficientsam3.store.codecs import CODECS, DEFAULT_CODEC, CodecName


class DistillRequest(Request):
    """From a folder of images to a merged model."""

    images: Folder = Field(
        description="your images: any tree of folders, of which 10 % are kept for validation unless there are folders "
        "train/ and val/; or SA-1B's layout; or COCO's"
    )
    sam3: FileOrFolder = Field(description="the teacher: sam3.pt, or facebook/sam3's directory")
    student: Annotated[str, Argument("NAME")] = Field(
        description=f"one of {', '.join(STUDENTS)}, see the README; or timm/<name>, any backbone of timm"
    )
    out: Folder = Field(description="where everything goes")
    dataset: DatasetName | None = Field(
        None,
        description="how DIR is laid out (default: sa1b where there is images/train, coco where there is train2017, "
        "otherwise images)",
    )
    epochs: Count = Field(50, description="epochs of training")
    batch_size: Count = Field(4, description="images per process and step")
    processes: Count = Field(1, description="processes on this machine, one per GPU")
    head: HeadName = Field("fpn", description=f"the student's head. {describe(HEADS)}")
    pretrained: Annotated[str, Argument("WHAT")] = Field(
        "true",
        description="true, the default: ImageNet weights, which timm downloads; false: from scratch; or a local file",
    )
    workers: CountOrZero = Field(
        default_factory=lambda: min(2, usable_cores()),
        description="image-reading processes per process; 2, or 1 on one core",
    )
    seed: CountOrZero = Field(0, description="seed of the whole run")
    device: DeviceName = "auto"
    codec: Annotated[CodecName, Argument("CODEC")] = Field(
        DEFAULT_CODEC, description=f"how the teacher's embeddings are stored. {describe(CODECS)}"
    )
    online: bool = Field(
        False, description="store no embeddings: the teacher runs in the training loop, in every epoch again"
    )

    masks: bool = Field(
        False, description="also learn SAM3's masks of boxes and points, with its decoder in the training loop: slower"
    )

    @model_validator(mode="after")
    def _stored_or_online(self) -> "DistillRequest":
        if self.online and "codec" in self.model_fields_set:
            raise ValueError(f"--codec {self.codec} has no effect with --online, which stores nothing: give only one")
        return self

    @property
    def embed_config(self) -> Path:
        """The configuration of embedding the dataset."""
        return self.out / "export.yaml"

    @property
    def train_config(self) -> Path:
        """The configuration of the training."""
        return self.out / "train.yaml"

    @property
    def teacher_dir(self) -> Path:
        """The output of embedding the dataset."""
        return self.out / "teacher"

    @property
    def student_dir(self) -> Path:
        """The output of the training."""
        return self.out / "student"

    @property
    def merged(self) -> Path:
        """The merged model: a file for a file, a directory for a directory."""
        return self.out / ("efficient_sam3" if self.sam3.is_dir() else "efficient_sam3.pt")
