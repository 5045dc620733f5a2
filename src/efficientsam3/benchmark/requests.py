"""What `compare` and the subjects of `benchmark` that need no configuration are asked to do."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from efficientsam3.models.heads import DEFAULT_HEAD, HEADS, HeadName
from efficientsam3.models.students import STUDENTS
from efficientsam3.runtime.device import DeviceName
from efficientsam3.runtime.request import Argument, Count, CountOrZero, File, Overwrite, Request, describe

ALL = "all"
EAGER = "eager"
Way = Literal[
    "eager", "channels_last", "fused", "fused channels_last", "compiled", "fused compiled", "onnx", "onnx int8"
]
WAYS: tuple[Way, ...] = get_args(Way)  # in the order of the table; `eager` is the baseline
QUICK_WAYS = tuple(way for way in WAYS if not ("compiled" in way or "onnx" in way))
Students = Annotated[
    tuple[str, ...],
    Argument("NAME"),
    Field(description=f"students: {ALL}, or one or more of {', '.join(STUDENTS)}"),
]


class CompareRequest(Request):
    """Which students to compare with SAM3."""

    student: Students = (ALL,)
    head: HeadName = Field(DEFAULT_HEAD, description=f"the students' head. {describe(HEADS)}")
    sam3_ckpt: File | None = Field(
        None, description="count this sam3.pt, and size the students for it; default: a shipped table of its shapes"
    )


class LatencyRequest(Request):
    """Which students to time, in which ways."""

    student: Students = (ALL,)
    head: tuple[HeadName, ...] = Field(tuple(HEADS), description="the students' heads")
    way: tuple[Way, ...] = Field(
        QUICK_WAYS,
        description="ways to run them; default: all of PyTorch's but the compiled ones, which take minutes to compile; "
        "onnx and onnx int8 (CPU alone) are what export-onnx writes",
    )
    rounds: Count = Field(5, description="measurements of each way")
    threads: CountOrZero = Field(0, description="PyTorch's threads; 0, the default: as many as it takes")
    device: DeviceName = "auto"


class GpuRequest(Request):
    """What to measure of a GPU, and how long that may take."""

    student: Students = (ALL,)
    batch_size: Count = Field(32, description="images of a training's batch, halved where they do not fit")
    seconds: Count = Field(480, description="no measurement is begun that could end later than this")
    json_file: Annotated[File | None, Argument(aliases=("--json",))] = Field(
        None, description="also write the measurements, and the tracebacks of those that failed, to this file"
    )
    small: bool = Field(
        False, description="tiny models and images, which any device can compute: tries the command out"
    )
    device: DeviceName = "cuda"
    overwrite: Overwrite = False


class MemoryRequest(Request):
    """Whose training's memory to count."""

    student: Students = (ALL,)
    head: tuple[HeadName, ...] = Field(tuple(HEADS), description="the students' heads")
    batch_size: Count = Field(32, description="images of a batch")
