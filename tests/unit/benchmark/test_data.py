"""The stages of the data path, timed: what is counted, not how long it took."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from efficientsam3.benchmark.data import profile_data
from efficientsam3.config.schema import TrainConfig
from efficientsam3.runtime.distributed import Process
from efficientsam3.runtime.errors import UserError
from efficientsam3.train.plan import plan_training

STAGES = ["read record", "read image", "decode", "augment", "resize"]


def test_every_stage_of_every_readable_picture_is_timed(
    make_training: Callable[..., TrainConfig], one_process: Process, photographs_path: Path
) -> None:
    profile = profile_data(plan_training(make_training()), one_process, images=3)
    assert list(profile.milliseconds) == STAGES
    assert min(profile.milliseconds.values()) > 0
    assert list(profile.cpu_milliseconds) == STAGES
    assert profile.images == 3
    sizes = [Image.open(path).size for path in sorted((photographs_path / "images" / "train").glob("*.jpg"))]
    assert profile.megapixels in {width * height / 1e6 for width, height in sizes}
    assert profile.core_rate == pytest.approx(1000 / sum(profile.cpu_milliseconds.values()))
    assert profile.loader_rate > 0


def test_pictures_that_cannot_be_read_are_not_counted(
    make_training: Callable[..., TrainConfig], one_process: Process, photographs_path: Path, tmp_path: Path
) -> None:
    names = [path.name for path in sorted((photographs_path / "images" / "train").glob("*.jpg"))]
    (tmp_path / "images" / "train").mkdir(parents=True)
    (tmp_path / "images" / "val").mkdir()
    for name in names:
        (tmp_path / "images" / "train" / name).write_bytes(b"\xff\xd8 nothing")
    with pytest.raises(UserError, match="None of the first 64 training images"):
        profile_data(plan_training(make_training(data=tmp_path)), one_process)
