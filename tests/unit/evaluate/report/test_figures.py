from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from efficientsam3.evaluate.report.figures import (
    FeatureColours,
    FeaturePair,
    cosine_similarity,
    feature_figure,
    loss_figure,
    write_figure,
)
from efficientsam3.runtime.errors import UserError


@pytest.fixture
def teacher() -> np.ndarray:
    """Left half and right half far apart in one direction, with some noise in all 8."""
    features = np.random.default_rng(0).normal(scale=0.1, size=(8, 6, 6))
    features[5, :, 3:] += 10
    return features


def test_colours_follow_the_largest_direction(teacher: np.ndarray) -> None:
    colours = FeatureColours([teacher])(teacher)
    assert colours.shape == (6, 6, 3)
    assert colours.min() >= 0
    assert colours.max() <= 1
    red = colours[..., 0]
    assert red[:, :3].max() < 0.1
    assert red[:, 3:].min() > 0.9


def test_scale_is_the_teachers(teacher: np.ndarray) -> None:
    colours = FeatureColours([teacher])
    assert np.array_equal(colours(teacher.copy()), colours(teacher))
    flat = colours(np.broadcast_to(teacher.mean(axis=(1, 2), keepdims=True), teacher.shape))
    assert flat[..., 0] == pytest.approx(0.5, abs=0.05)  # a student that predicts the mean is grey in the main colour
    assert np.ptp(flat, axis=(0, 1)) == pytest.approx(0, abs=1e-9)


def test_constant_features_have_a_colour() -> None:
    constant = np.ones((4, 2, 2), dtype=np.float16)
    assert np.isfinite(FeatureColours([constant])(constant)).all()


def test_cosine_similarity_ignores_length(teacher: np.ndarray) -> None:
    assert cosine_similarity(teacher, 3 * teacher) == pytest.approx(1)
    assert cosine_similarity(teacher, -teacher) == pytest.approx(-1)
    assert cosine_similarity(teacher, np.zeros_like(teacher)) == 0


def test_feature_figure_shows_each_image_in_its_own_shape(teacher: np.ndarray) -> None:
    squashed = np.zeros((30, 30, 3), dtype=np.uint8)
    wide = FeaturePair(squashed, (20, 40), teacher, teacher)
    tall = FeaturePair(squashed, (40, 20), teacher, -teacher)
    figure = feature_figure([wide, tall])
    assert [axes.get_title() for axes in figure.axes[:3]] == ["image", "teacher", "student (cosine 1.00)"]
    assert figure.axes[5].get_title() == "student (cosine -1.00)"
    assert [tuple(axes.images[0].get_extent()) for axes in figure.axes] == [(0, 40, 20, 0)] * 3 + [(0, 20, 40, 0)] * 3


def test_loss_figure_draws_what_is_there() -> None:
    epochs = [
        {"epoch": 0, "train/loss": 2.0, "train/mse": 1.5, "train/cosine": 0.5, "val/loss": 2.5},
        {"epoch": 1, "train/loss": 1.0, "train/mse": 0.8, "train/cosine": 0.2, "val/loss": 1.5},
    ]
    loss, mse, cosine = loss_figure(epochs).axes
    assert [list(line.get_ydata()) for line in loss.lines] == [[2.0, 1.0], [2.5, 1.5]]
    assert [list(line.get_ydata()) for line in mse.lines] == [[1.5, 0.8]]
    assert list(cosine.lines[0].get_xdata()) == [0, 1]


def test_a_figure_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = loss_figure([{"epoch": 0, "train/loss": 1.0}])
    write_figure(tmp_path / "new" / "loss.png", figure)
    with Image.open(tmp_path / "new" / "loss.png") as image:
        assert image.format == "PNG"
        assert np.asarray(image.convert("RGB")).std() > 0

    def fail(self: Figure, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    before = (tmp_path / "new" / "loss.png").read_bytes()
    with pytest.raises(UserError, match="No space left"):
        write_figure(tmp_path / "new" / "loss.png", figure)
    assert (tmp_path / "new" / "loss.png").read_bytes() == before
    assert len(list((tmp_path / "new").iterdir())) == 1
