"""Requests of the commands `download`, `reorg` and `data`."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from efficientsam3.data.layouts import DATASETS, DEFAULT_DATASET, DatasetName
from efficientsam3.data.sa1b.links import SOURCE, Subset
from efficientsam3.data.sa1b.placing import Mode
from efficientsam3.data.split import DEFAULT_VAL_RATIO
from efficientsam3.runtime.device import usable_cores
from efficientsam3.runtime.request import Argument, Count, File, Folder, Request, describe

Dataset = Annotated[DatasetName, Field(description=f"layout. {describe(DATASETS)}")]


def _cores() -> int:
    return min(usable_cores(), 8)


class DownloadRequest(Request):
    """Which part of SA-1B to download, and where."""

    links: File = Field(
        description=f"the tab-separated file that {SOURCE} issues once you accept the licence; its links expire after "
        "weeks"
    )
    subset: Subset = Field("all", description="all tars with links, or the published 10p (100 tars) or 1p (10)")
    output: Folder = Field(description="folder for the tars, ~11 GB each")
    workers: Count = Field(4, description="downloads at a time")


class ReorganiseRequest(Request):
    """What to make a dataset from, and how."""

    source: Path | None = Field(
        None,
        description="folder of .tar files, or of extracted ID.jpg + ID.json pairs, at any depth (default: --output, "
        "in place)",
    )
    output: Path = Field(Path("data/sa-1b"), description="the dataset")
    val_ratio: Annotated[float, Argument("R")] = Field(
        DEFAULT_VAL_RATIO, description="share of images for val; a hash of its id decides, so later tars move none"
    )
    workers: Count = Field(
        default_factory=_cores, description="processes, each with a tar at a time; one per core, up to 8"
    )
    delete_tars: bool = Field(
        False, description="remove each tar once all of it is in place and on disk; one with anything skipped stays"
    )
    mode: Annotated[
        Mode | None,
        Argument(
            flags={
                "link": "hard-link the files of folders",
                "move": "move them (default in place)",
                "copy": "copy them (default elsewhere)",
            }
        ),
    ] = Field(None, description="what to do with the files of folders")

    @property
    def source_or_output(self) -> Path:
        """The source, by default the dataset itself."""
        return self.source or self.output

    @property
    def mode_or_default(self) -> Mode:
        """The mode, by default `move` in place and `copy` elsewhere."""
        in_place = self.source_or_output.resolve() == self.output.resolve()
        return self.mode or ("move" if in_place else "copy")


class ViewsRequest(Request):
    """Which dataset to make views of, and which."""

    data_path: Annotated[Path, Argument("DIR", positional=True)] = Field(description="the dataset's folder")
    output: Folder = Field(description="the new dataset, in SA-1B's layout: all images, and views of those to train on")
    dataset: Dataset = DEFAULT_DATASET
    views: Count = Field(
        3, description="of each training image: the first is the whole, mirrored, the others are crops"
    )
    smallest: Annotated[float, Argument("SHARE")] = Field(
        0.5, gt=0, le=1, description="of the image's sides that a crop has at least"
    )
    seed: Annotated[int, Argument("N")] = Field(0, ge=0, lt=2**31, description="draws the crops, with each image's id")
    workers: Count = Field(default_factory=_cores, description="processes; one per core, up to 8")


class CheckRequest(Request):
    """Which dataset to check, and what to do with what is broken."""

    data_path: Annotated[Path, Argument("DIR", positional=True)] = Field(description="the dataset's folder")
    dataset: Dataset = DEFAULT_DATASET
    workers: Count = Field(default_factory=_cores, description="processes; one per core, up to 8")
    report: File | None = Field(None, description="where to list all problems (default: DIR/check_problems.tsv)")
    fix: bool = Field(
        False,
        description="move broken images, broken annotations, annotations without image to DIR/.quarantine; delete "
        "nothing",
    )
