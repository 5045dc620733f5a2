"""Requests of the command `store`."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from efficientsam3.data.layouts import DEFAULT_DATASET
from efficientsam3.data.requests import Dataset
from efficientsam3.runtime.device import DeviceName
from efficientsam3.runtime.request import Argument, Count, Folder, Request, describe
from efficientsam3.store.codecs import CODECS, CodecName


class StoreRequest(Request):
    """The store that a command works on."""

    store: Annotated[Path, Argument("DIR", positional=True)] = Field(description="an embedding store's folder")


class VerifyRequest(StoreRequest):
    """Which store to verify, and whether to repair it."""

    repair: bool = Field(
        False,
        description="put changed ids back and drop damaged records: the next `efficientsam3 embed` computes them again",
    )
    data_path: Folder | None = Field(
        None, description="folder of the dataset: also find records whose images were replaced since"
    )
    dataset: Dataset = DEFAULT_DATASET


class ConvertRequest(StoreRequest):
    """Which store to re-encode, and how."""

    codec: Annotated[CodecName, Argument("CODEC")] = Field(description=describe(CODECS))
    output: Folder = Field(description="folder of the new store")
    device: DeviceName = "auto"


class MissingRequest(StoreRequest):
    """The dataset that a store should hold."""

    data_path: Folder = Field(description="folder of the dataset")
    dataset: Dataset = DEFAULT_DATASET


class BindRequest(StoreRequest):
    """The store to bind, and what its manifest does not say."""

    published: Annotated[tuple[str, str, str, str] | None, Argument(("DIM", "SIZE", "PIXELS", "RESIZE"))] = Field(
        None,
        description="shape of a store without a manifest: channels, cells a side, pixels a side of the input, square "
        "or pad",
    )


class StatisticsRequest(BindRequest):
    """The store whose statistics to gather, and what its manifest does not say."""

    data_path: Folder | None = Field(
        None, description="folder of the dataset that was embedded; needed where its images are padded"
    )
    dataset: Dataset = DEFAULT_DATASET


class AdviseRequest(StoreRequest):
    """The store to measure codecs on, and the training to recommend one for."""

    count: Count = Field(64, description="how many embeddings to measure on")
    images: Count = Field(1_100_000, description="images in the dataset, by default SA-1B's 1,100,000")
    speed: Annotated[float, Argument("RATE")] = Field(
        300.0, gt=0, description="images/s of the training, whose read rate is shown"
    )
    least_cosine: Annotated[float, Argument("C")] = Field(0.995, description="lowest cosine similarity to accept")
