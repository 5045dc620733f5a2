"""The browser page in headless Chromium: it answers as `efficientsam3 predict` does, and asks no other host.

    export EFFICIENTSAM3_CHROMIUM=/usr/bin/chromium EFFICIENTSAM3_ORT_WEB=node_modules/onnxruntime-web/dist
    pytest tests/e2e/test_page.py

With EFFICIENTSAM3_SCREENSHOTS=DIR the page is photographed after a click and after a word.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from e2e.chromium import Chromium
from e2e.conftest import Run
from e2e.processes import ROOT, environment
from efficientsam3.export.onnx.run import export_onnx
from efficientsam3.merge.run import merge
from unit.conftest import training_checkpoint

CHROMIUM = os.environ.get("EFFICIENTSAM3_CHROMIUM", "")
RUNTIME = os.environ.get("EFFICIENTSAM3_ORT_WEB", "")
pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="EFFICIENTSAM3_CHROMIUM does not name a Chromium executable"),
    pytest.mark.skipif(not RUNTIME, reason="EFFICIENTSAM3_ORT_WEB does not name the dist folder of onnxruntime-web"),
]

POINT = (60.0, 45.0)  # in pixels of the image
BOX = (20.0, 30.0, 90.0, 80.0)
WORD = "a yellow dog"
THRESHOLD = 0.01  # low enough for a model that has learnt nothing
READY = """(() => {
  const get = (id) => document.getElementById(id);
  return !get("computing").disabled && (!get("error").hidden || / (is ready|found in)/.test(get("status").textContent));
})()"""
ANSWER = """(async () => {
  const { state } = await import("/scene.js");
  const { width, height } = document.getElementById("canvas");
  const objects = state.objects.map(({ score, box, mask }) => ({ score, box, mask: mask.join("") }));
  const list = [...document.querySelectorAll("#objects .score")].map((score) => score.textContent);
  return JSON.stringify({ width, height, objects, list });
})()"""


@pytest.fixture(scope="module")
def onnx(tiny_sam3_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX directory of the small SAM3 with an untrained student."""
    import torch

    folder = tmp_path_factory.mktemp("page")
    torch.save(training_checkpoint("efficientvit_b0"), folder / "student.pth")
    merge(folder / "student.pth", tiny_sam3_path, folder / "merged.pt")
    export_onnx(folder / "merged.pt", folder / "onnx")
    return folder / "onnx"


@pytest.fixture(scope="module")
def image(photographs_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "a & b.jpg"
    shutil.copy(sorted((photographs_path / "images").rglob("*.jpg"))[0], path)
    return path


@pytest.fixture(scope="module")
def browser(onnx: Path, image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """A browser with the page, and the image open on it."""
    command = ["efficientsam3", "serve", onnx, "--onnxruntime-web", RUNTIME, "--images", image.parent, "--port", 0]
    server = subprocess.Popen(
        [str(part) for part in command], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        address = re.search(r"http://\S+", server.stdout.readline())
        assert address is not None
        with Chromium(CHROMIUM, tmp_path_factory.mktemp("profile")) as found:
            found.send("Emulation.setDeviceMetricsOverride", width=1280, height=860, deviceScaleFactor=1, mobile=False)
            found.send("Page.navigate", url=f"{address[0]}?image=a%20%26%20b.jpg")
            found.wait("Boolean(document.getElementById('status'))", lambda: found.messages)
            _ready(found)
            yield found
            assert found.requests
            assert [url for url in found.requests if not url.startswith((address[0], "data:", "blob:"))] == []
            assert found.messages == []
    finally:
        server.terminate()
        server.wait(20)


def _ready(browser: Chromium) -> None:
    """Wait until the page has answered; its error is the test's."""
    browser.wait(READY, lambda: (browser.evaluate("document.getElementById('status').textContent"), browser.messages))
    error = browser.evaluate("(({ hidden, textContent }) => hidden || textContent)(document.getElementById('error'))")
    assert error is True


def _answer(browser: Chromium) -> tuple[list[Any], list[np.ndarray[Any, Any]]]:
    answer = json.loads(browser.evaluate(ANSWER))
    assert answer["list"] == [f"{found['score']:.3f}" for found in answer["objects"]]
    shape = (answer["height"], answer["width"])
    return answer["objects"], [np.array(list(found["mask"])).reshape(shape) == "1" for found in answer["objects"]]


def _place(browser: Chromium, image: Path, point: tuple[float, float]) -> tuple[float, float]:
    """A point of the image in pixels of the window."""
    script = "(({ left, top, width }) => [left, top, width])(document.getElementById('canvas').getBoundingClientRect())"
    left, top, width = browser.evaluate(script)
    scale = width / Image.open(image).width
    return left + point[0] * scale, top + point[1] * scale


def _clear(browser: Chromium) -> None:
    browser.evaluate("document.getElementById('clear').click()")
    assert _answer(browser) == ([], [])
    assert browser.evaluate("document.getElementById('clear').disabled")


def _choose(browser: Chromium, mode: str) -> None:
    browser.evaluate(f"document.querySelector('input[value={mode}]').click()")


def _fill_holes(browser: Chromium, area: int) -> None:
    holes = "document.getElementById('holes')"
    assert browser.evaluate(f"{holes}.value") != str(area)
    browser.evaluate(f"({holes}.value = {area}, {holes}.dispatchEvent(new Event('change')))")
    _ready(browser)


def _screenshot(browser: Chromium, name: str) -> None:
    if folder := os.environ.get("EFFICIENTSAM3_SCREENSHOTS"):
        browser.screenshot(Path(folder) / name)


@pytest.fixture
def compare(run: Run, onnx: Path, image: Path, tmp_path: Path) -> Any:
    """Compare what the page shows with what `predict` writes for the same prompts."""

    def check(browser: Chromium, *prompts: object) -> int:
        run("efficientsam3", "predict", onnx, image, *prompts, "--threshold", THRESHOLD, "--out", tmp_path)
        expected = json.loads((tmp_path / f"{image.stem}.json").read_text())["objects"]
        objects, masks = _answer(browser)
        assert len(objects) == len(expected) > 0
        for found, mask, wanted in zip(objects, masks, expected, strict=True):
            assert abs(found["score"] - wanted["score"]) < 1e-3
            x, y, width, height = wanted["bbox"]
            np.testing.assert_allclose(found["box"], [x, y, x + width, y + height], atol=1)
            truth = np.asarray(Image.open(tmp_path / wanted["mask"])) > 0
            assert (mask & truth).sum() / max(1, (mask | truth).sum()) >= 0.99
        return len(objects)

    return check


def test_a_click_gives_the_mask_of_predict(browser: Chromium, image: Path, compare: Any) -> None:
    place = _place(browser, image, POINT)
    browser.drag(place, place)
    _ready(browser)
    _screenshot(browser, "click.png")
    assert compare(browser, "--point", *POINT) == 1
    _fill_holes(browser, 0)
    assert compare(browser, "--point", *POINT, "--max-hole-area", 0) == 1
    _fill_holes(browser, 256)
    off = _place(browser, image, (100, 20))
    browser.drag(off, off, button="right")
    _ready(browser)
    assert compare(browser, "--point", *POINT, "--negative-point", 100, 20) == 1
    _clear(browser)


def test_a_word_gives_the_masks_of_predict(browser: Chromium, compare: Any) -> None:
    browser.evaluate(f"document.getElementById('threshold').value = {THRESHOLD}")
    browser.evaluate("document.getElementById('phrase').focus()")
    browser.type(WORD)
    _ready(browser)
    _screenshot(browser, "word.png")
    assert compare(browser, "--text", WORD) > 1
    _clear(browser)
    browser.evaluate("document.getElementById('phrase').value = ''")


def test_boxes_are_the_object_s_or_examples(browser: Chromium, image: Path, compare: Any) -> None:
    corners = _place(browser, image, BOX[:2]), _place(browser, image, BOX[2:])
    browser.drag(*corners)
    _ready(browser)
    assert compare(browser, "--object-box", *BOX) == 1
    _choose(browser, "examples")
    browser.drag(*corners)
    _ready(browser)
    assert compare(browser, "--box", *BOX) > 1
    other = (5.0, 5.0, 40.0, 60.0)
    browser.drag(_place(browser, image, other[:2]), _place(browser, image, other[2:]), button="right")
    _ready(browser)
    assert compare(browser, "--box", *BOX, "--negative-box", *other) > 1
    _choose(browser, "object")
    _clear(browser)


def test_an_error_is_a_sentence_on_the_page(browser: Chromium) -> None:
    browser.evaluate("document.querySelector('#words button').click()")
    browser.wait("!document.getElementById('error').hidden", lambda: "no error is shown")
    assert "nothing to find" in browser.evaluate("document.getElementById('error').textContent")
    browser.evaluate(f"document.getElementById('phrase').value = '{'dog ' * 40}'")
    browser.evaluate("document.querySelector('#words button').click()")
    browser.wait("document.getElementById('error').textContent.includes('at most 32 fit')", lambda: "no error is shown")
    browser.evaluate("document.getElementById('phrase').value = ''")
    browser.evaluate("document.getElementById('clear').click()")


def test_the_keyboard_sets_points(browser: Chromium) -> None:
    browser.evaluate("document.getElementById('canvas').focus()")
    for key in ("ArrowLeft", "ArrowUp", "Enter"):
        browser.press(key)
    _ready(browser)
    assert len(_answer(browser)[0]) == 1
    browser.press("Delete")
    assert _answer(browser) == ([], [])
