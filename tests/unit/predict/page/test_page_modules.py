"""The page's arithmetic gives the numbers of `predict`: tokens, the encoder's input, holes, masks."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer

from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.predict.onnx_sam3 import to_input
from efficientsam3.sam3.geometry import Floats, Placement, boxes_of_masks
from efficientsam3.sam3.holes import fill_holes
from efficientsam3.sam3.promptable import Pixels
from efficientsam3.sam3.text import build_tokenizer
from unit.predict.page.node import call

PHRASES = [
    "dog",
    "a red sock",
    "THE Dog's tail isn't; we're, I'll, they've, he'd, I'm",
    "player in white no. 10, 1234567 and 3.14",
    "  spaces\tand\n\nlines\u3000of\u00a0all\u2003kinds\u0085here\ufeffand\u200bthere ",
    "caf\u00e9 cafe\u0301 \u212bngstr\u00f6m \u017f\u0131\u0130stanbul STRASSE stra\u00dfe \u1e9e \u00df",
    "\u039f\u0394\u039f\u03a3 \u03a3\u03a3 \u03c3\u03c2",
    "\u72d7 \u732b\u306e\u5199\u771f \u0e2b\u0e21\u0e32 \u0915\u0941\u0924\u094d\u0924\u093e",
    "\u05db\u05dc\u05d1 \u0643\u0644\u0628 \uac1c\u1100\u1162 \u0434\u0432\u0430 \u0439",
    "\U0001f415\U0001f3fd\u200d\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f x\u00b2 \u00bd \u2167 \u0663",
    "'s 's't're''ll '''S !!!'?? -- ... _under_ a_b @#$%^&*()[]{}<>|\\/`~\"",
    "<|startoftext|> a <|endoftext|>b<|ENDOFTEXT|> <|endoftext",
    "supercalifragilisticexpialidocious aaaaaaaaaaaaaaaaaaaa abababababab",
    "\x00\x01\x7f\x80\xad\xff",
    "",
    "   ",
    "'",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_tokenizer().backend_tokenizer


def _encode(tokenizer: Tokenizer, phrases: list[str]) -> Any:
    make = "const tokenizer = new module.Tokenizer(given.file);"
    body = f"(() => {{ {make} return given.phrases.map((phrase) => tokenizer.encode(phrase)); }})()"
    return call("tokenizer.js", body, file=json.loads(tokenizer.to_str()), phrases=phrases)


def test_tokens_are_those_of_tokenizers(tokenizer: Tokenizer) -> None:
    for phrase, ids in zip(PHRASES, _encode(tokenizer, PHRASES), strict=True):
        assert ids == tokenizer.encode(phrase).ids, repr(phrase)


# The categories of characters in which the versions of Unicode agree: what is assigned, and private use.
_TEXT = st.text(st.characters(max_codepoint=0x2FFFF, exclude_categories=("Cs", "Cn")), max_size=24)
_ODD = st.lists(st.sampled_from([*"'srtvemld aA1!\u0301\u0345\u03a3", "<|startoftext|>", "<|", "|>"]), max_size=16)


@settings(max_examples=3, deadline=None)
@given(st.lists(_TEXT | _ODD.map("".join), min_size=200, max_size=200))
def test_any_text_gives_the_tokens_of_tokenizers(tokenizer: Tokenizer, phrases: list[str]) -> None:
    for phrase, ids in zip(phrases, _encode(tokenizer, phrases), strict=True):
        assert ids == tokenizer.encode(phrase).ids, repr(phrase)


def test_another_tokenizer_is_refused() -> None:
    body = (
        "(() => { try { new module.Tokenizer({ model: { type: 'WordPiece' } }); } catch (e) { return e.message; } })()"
    )
    assert "CLIP" in call("tokenizer.js", body)


_SIZES = [(37, 90), (90, 37), (24, 24), (48, 5), (1, 1), (130, 61)]


@pytest.mark.parametrize("resize", ["square", "pad"])
def test_the_input_is_predict_s(resize: Any) -> None:
    preprocessing = Preprocessing(image_size=48, resize=resize, mean=(0.5, 0.4, 0.3), std=(0.5, 0.2, 0.25))
    images = [_image(np.dstack([_noise(size), np.full(size, 255, np.uint8)])) for size in _SIZES]
    body = "given.images.map((image) => module.toInput(image, given.preprocessing))"
    answer = call("preprocess.js", body, images=images, preprocessing=preprocessing.model_dump())
    grey_level = 1.001 / 255 / np.array(preprocessing.std)[:, None, None]
    for size, values in zip(_SIZES, answer, strict=True):
        found, expected = np.float32(values).reshape(3, 48, 48), to_input(_noise(size), preprocessing)[0]
        assert ((found == 0) == (expected == 0)).mean() > 0.99, size  # the padding
        assert (np.abs(found - expected) <= grey_level).all(), size


@pytest.mark.parametrize(("height", "width"), [(48, 48), (20, 31)])
def test_resizing_is_pillow_s(height: int, width: int) -> None:
    body = f"given.images.map((image) => module.resizeBilinear(image, {width}, {height}).data)"
    answer = call("preprocess.js", body, images=[_image(_noise(size)) for size in _SIZES])
    for size, values in zip(_SIZES, answer, strict=True):
        # One axis at a time: which comes first depends on Pillow's version.
        between = (width, size[0]) if width * size[0] <= height * size[1] else (size[1], height)
        expected = Image.fromarray(_noise(size))
        for step in (between, (width, height)):
            expected = expected.resize(step, Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(np.array(values).reshape(height, width, 3), np.asarray(expected), str(size))


def _noise(size: tuple[int, int]) -> Pixels:
    return np.random.default_rng(size[0]).integers(0, 256, (*size, 3), dtype=np.uint8)


def _image(pixels: Pixels) -> dict[str, Any]:
    return {"data": pixels.ravel().tolist(), "width": pixels.shape[1], "height": pixels.shape[0]}


@pytest.mark.parametrize(("size", "content"), [((75, 100), (64, 64)), ((75, 100), (48, 64)), ((33, 20), (64, 39))])
def test_masks_are_predict_s(size: tuple[int, int], content: tuple[int, int]) -> None:
    logits = np.random.default_rng(0).normal(size=(1, 16, 16)).astype(np.float32)
    expected = Placement(size, content, 64).masks_to_image(logits)
    found = call(
        "masks.js",
        "module.toMask(given.logits, given.content, 64, given.size)",
        logits=_level(logits[0]),
        content=content,
        size=size,
    )
    np.testing.assert_array_equal(np.array(found, dtype=bool).reshape(size), expected[0])


def _level(values: Floats) -> dict[str, Any]:
    return {"data": values.ravel().tolist(), "width": values.shape[1], "height": values.shape[0]}


def test_holes_are_predict_s() -> None:
    rng, levels = np.random.default_rng(0), []
    for _ in range(100):
        coarse = rng.normal(rng.uniform(-0.5, 1.5), 1, rng.integers(1, 25, 2)).round(1)
        levels.append(coarse.repeat(2, 0).repeat(3, 1).astype(np.float32))
    for max_area in (0, 6, 40, 256):
        body = "given.levels.map((level) => module.fillHoles(level, given.area).data)"
        found = call("holes.js", body, levels=[_level(level) for level in levels], area=max_area)
        for level, values in zip(levels, found, strict=True):
            np.testing.assert_array_equal(np.float32(values).reshape(level.shape), fill_holes(level[None], max_area)[0])


def test_boxes_of_masks_are_predict_s() -> None:
    mask = np.zeros((9, 12), dtype=bool)
    body = "module.boxOfMask(given.mask, [9, 12])"
    assert call("masks.js", body, mask=mask.ravel().tolist()) == boxes_of_masks(mask[None])[0].tolist() == [0, 0, 0, 0]
    mask[2:5, 4], mask[4, 3:11] = True, True
    assert call("masks.js", body, mask=mask.ravel().tolist()) == boxes_of_masks(mask[None])[0].tolist()
