"""Dataset layouts: how the folders of a dataset are arranged. One table, importable without PyTorch.

Read `layout` first: it says what a layout must answer; `sa1b`, `coco` and `images` are the layouts there are. To add
one, write a subclass of `layout.Layout` in a file here, and enter it in `DATASETS`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from efficientsam3.data.layouts.coco import Coco
from efficientsam3.data.layouts.images import Images
from efficientsam3.data.layouts.layout import Layout
from efficientsam3.data.layouts.sa1b import Sa1b
from efficientsam3.data.split import Split
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.request import OneOf

if TYPE_CHECKING:
    from efficientsam3.data.listing import ImageListing

# In the order in which `guess_dataset` asks them; the last one takes any folder.
DATASETS: dict[str, Layout] = {layout.name: layout for layout in (Sa1b(), Coco(), Images())}
DEFAULT_DATASET = "sa1b"
DatasetName = Annotated[str, OneOf(DATASETS)]  # type of a field in a configuration or request


def guess_dataset(folder: Path) -> str:
    """The name of the layout that a folder has.

    Raises:
        UserError: `folder` is not a folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the folder that your images are in.")
    return next(name for name, layout in DATASETS.items() if layout.recognises(folder))


def list_images(data_path: Path, split: Split, dataset: str = DEFAULT_DATASET, limit: int = 0) -> "ImageListing":
    """List one split of a dataset, sorted by id.

    A split whose folder is empty or missing gives an empty listing, which the caller may refuse.

    Args:
        data_path: the dataset's folder.
        split: which split.
        dataset: the layout, a name in `DATASETS`.
        limit: take the first so many after sorting, 0 for all (DATA.NUM_SAMPLES).

    Raises:
        UserError: `data_path` does not have this layout, two files have the same id, a name is not text, or an
            instances file is not in COCO's format.
    """
    layout = DATASETS[dataset]
    if not data_path.is_dir():
        raise UserError(f"DATA_PATH {data_path} is not a folder: {layout.remedy}.")
    return layout.list_split(data_path, split).first(limit)
