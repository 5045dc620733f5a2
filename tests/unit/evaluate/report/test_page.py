import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from efficientsam3.evaluate.masks.ground_truth import TrueImage
from efficientsam3.evaluate.masks.objects import TrueObject
from efficientsam3.evaluate.masks.request import EvaluationRequest
from efficientsam3.evaluate.masks.scores import ObjectScore
from efficientsam3.evaluate.masks.segmenters import to_rle
from efficientsam3.evaluate.report.charts import metric_charts
from efficientsam3.evaluate.report.gallery import Gallery
from efficientsam3.evaluate.report.overlays import example_images
from efficientsam3.evaluate.run import evaluate_masks
from efficientsam3.sam3.prompts import ObjectPrompt

NAN = float("nan")
PROMPT = ObjectPrompt(box=(0, 0, 8, 8))


class Page(HTMLParser):
    """Everything that a browser would fetch, and whether tags match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("line", "circle", "polyline")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


@pytest.fixture
def page(tmp_path: Path, write_sa1b, two_images, write_store, box_decoder, student_path) -> str:
    data = write_sa1b(tmp_path / "sa1b", two_images)
    store = write_store(tmp_path / "store", ["sa_1", "sa_2"])
    models = [f"<b>teacher</b>={store}", str(student_path)]
    request = EvaluationRequest(models=models, data=data, decoder=box_decoder, out=tmp_path / "out", device="cpu")
    return evaluate_masks(request).report.read_text()


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    fetched = Page(page).fetched
    assert fetched
    assert all(uri.startswith("data:image/") for uri in fetched)
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|url\(|@import|<script", page)


def test_its_images_are_whole(page: str) -> None:
    for uri in Page(page).fetched:
        Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).load()


def test_it_shows_everything(page: str) -> None:
    for heading in ("Scores", "mIoU by object size", "Training", "Features", "Masks"):
        assert f"<h2>{heading}</h2>" in page
    assert "<b>teacher</b>" not in page, "names are text"
    assert "&lt;b&gt;teacher&lt;/b&gt;" in page
    assert page.count("<polyline") == 2  # train and val loss of the training beside the checkpoint
    # Image and two models, of two images; groups of two objects, of two prompts, of five images each.
    assert page.count("<img") == 2 * 3 + 2 * 3 * 2 * 4


def test_charts_hold_every_value() -> None:
    runs = {
        "one": [
            {"epoch": 0.0, "train/loss": 4.0, "lr": 1.0},
            {"epoch": 2.0, "train/loss": 2.0, "val/mse": -1.0, "val/loss": NAN},
        ]
    }
    loss, mse = metric_charts(runs)
    assert (loss.title, mse.title) == ("loss", "mse")
    (line,) = loss.lines
    first, last = ([float(number) for number in corner.split(",")] for corner in line.points.split())
    assert first == [loss.left, loss.ticks[2][0]]
    assert last == [loss.right, pytest.approx(loss.ticks[1][0])]
    assert [label for _, label in loss.ticks] == ["0", "2", "4"]
    assert [label for _, label in mse.ticks] == ["-1", "-0.5", "0"]
    assert [line.label for line in metric_charts({**runs, "two": runs["one"]})[0].lines] == ["one train", "two train"]


def offer(gallery: Gallery, image_id: str, number: int, *ious: float, area: int = 4) -> None:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask.view(-1)[:area] = True
    image = TrueImage(image_id, Path(f"{image_id}.jpg"), (8, 8), (), Path())
    scores = [ObjectScore(f"m{place}", image_id, number, "box", area, iou, 1.0, 0.5) for place, iou in enumerate(ious)]
    gallery(image, TrueObject(number, to_rle(mask)), [mask] * len(ious), scores, [PROMPT] * len(ious))


def test_the_gallery_keeps_the_best_the_worst_and_the_furthest_behind() -> None:
    gallery = Gallery(size=2)
    for image_id, number, first, last in [
        ("a", 0, 0.9, 0.8),
        ("a", 1, 0.9, 0.1),
        ("b", 0, 0.2, 0.2),
        ("c", 0, 0.9, 0.7),
        ("d", 0, 0.6, 0.0),
        ("e", 0, 1.0, 0.9),
    ]:
        offer(gallery, image_id, number, first, last)
    found = {
        title: [(one.image_id, one.scores[0].number) for one in examples]
        for (_, title), examples in gallery.groups().items()
    }
    assert found == {
        "Best of m1": [("e", 0), ("a", 0)],
        "Worst of m1": [("d", 0), ("a", 1)],
        "m1 furthest behind m0": [("a", 1), ("d", 0)],
    }
    assert list(gallery.first_images) == ["a", "b"]


def test_the_gallery_is_about_the_model_shown() -> None:
    gallery = Gallery(size=1, shown=1)
    offer(gallery, "a", 0, 0.9, 0.1, 0.5)
    offer(gallery, "b", 0, 0.9, 0.8, 0.4)
    found = {title: examples[0].image_id for (_, title), examples in gallery.groups().items()}
    assert found == {"Best of m1": "b", "Worst of m1": "a", "m1 furthest behind m0": "a"}


def test_of_equals_the_larger_object_is_shown_and_one_model_has_nobody_to_be_behind() -> None:
    gallery = Gallery(size=1)
    for number, area in enumerate([3, 20, 5]):
        offer(gallery, f"image{number}", 0, 0.0, area=area)
    groups = gallery.groups()
    assert [title for _, title in groups] == ["Best of m0", "Worst of m0"]
    assert groups["box", "Worst of m0"][0].image_id == "image1"


def test_overlays_colour_the_mask_alone(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 60, 3), 128, dtype=np.uint8)).save(tmp_path / "grey.png")
    mask = torch.zeros(40, 60, dtype=torch.bool)
    mask[10:20, 20:30] = True
    gallery = Gallery()
    thing = TrueObject(0, to_rle(mask))
    score = ObjectScore("m", "grey", 0, "box", 100, 1.0, 1.0, 0.5)
    gallery(
        TrueImage("grey", tmp_path / "grey.png", (40, 60), (thing,), Path()),
        thing,
        [~mask],
        [score],
        [thing.prompt("box")],
    )
    asked, true, found = (
        np.asarray(image).astype(int) for image in example_images(gallery.groups()["box", "Best of m"][0])
    )
    # The object's surroundings are 10 pixels wider than its 10 x 10 on every side, enlarged to 360.
    assert asked.shape == true.shape == found.shape == (360, 360, 3)
    grey = np.array([128, 128, 128])
    assert (asked[180, 180] == grey).all()
    assert (asked[120, 180] == [255, 255, 0]).all()
    assert (true[180, 180] != grey).any()
    assert (true[30, 30] == grey).all()
    assert (found[180, 180] == grey).all()
    assert (found[30, 30] != grey).any()
