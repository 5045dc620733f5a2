"""What is measured: a whole SAM3, or an encoder with a decoder that is not its own."""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from efficientsam3.data.annotations.encode import encode_rle
from efficientsam3.data.annotations.rle import Rle
from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.evaluate.masks.encoders import Encoder
from efficientsam3.predict.onnx_sam3 import OnnxEncodedImage, OnnxSAM3
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.decoders import Answer, Decoder, MaskDecoder, TrackerDecoder
from efficientsam3.sam3.efficientsam3 import EfficientSAM3, EncodedImage
from efficientsam3.sam3.geometry import Placement
from efficientsam3.sam3.holes import MAX_HOLE_AREA
from efficientsam3.sam3.promptable import Segmentation
from efficientsam3.sam3.prompts import ObjectPrompt, Prompt

Ask = Callable[[Prompt], Answer]


class Segmenter(Protocol):
    """A model that answers prompts."""

    name: str
    preprocessing: Preprocessing  # what its encoder is fed

    def embed(self, image_id: str, pixels: torch.Tensor) -> torch.Tensor:
        """The embedding (1, D, G, G) of an image (3, H, W) uint8."""
        ...

    def open(self, image_id: str, pixels: torch.Tensor) -> Ask:
        """Encode an image (3, H, W) uint8 once, for any number of prompts."""
        ...

    def has(self, image_id: str) -> bool:
        """Whether it can answer for that image."""
        ...


class WholeModel:
    """SAM3 or EfficientSAM3, by its own decoders, in PyTorch or ONNX Runtime."""

    def __init__(self, name: str, model: EfficientSAM3 | OnnxSAM3, max_hole_area: int = MAX_HOLE_AREA) -> None:
        """Take a loaded model; `max_hole_area` as in `Promptable.segment`."""
        self.name, self._model, self.preprocessing = name, model, model.preprocessing
        self._max_hole_area = max_hole_area

    @property
    def decoder(self) -> MaskDecoder:
        """The tracker's part after the image encoder's trunk.

        Raises:
            UserError: it is in ONNX graphs, or the model was merged without it.
        """
        if isinstance(self._model, OnnxSAM3):
            raise UserError(f"{self.name} is in ONNX graphs, whose parts cannot be exchanged: give the merged model.")
        return TrackerDecoder(self._model.tracker, self._model.device, self._max_hole_area)

    def _encode(self, pixels: torch.Tensor) -> EncodedImage | OnnxEncodedImage:
        if isinstance(self._model, OnnxSAM3):
            return self._model.encode(pixels.permute(1, 2, 0).numpy())
        return self._model.encode(pixels)

    def embed(self, image_id: str, pixels: torch.Tensor) -> torch.Tensor:
        """See `Segmenter`."""
        return torch.as_tensor(self._encode(pixels).embedding)

    def open(self, image_id: str, pixels: torch.Tensor) -> Ask:
        """See `Segmenter`."""
        image = self._encode(pixels)
        concepts: dict[Prompt, Answer] = {}  # objects of one category ask for it over and over

        def ask(prompt: Prompt) -> Answer:
            if isinstance(prompt, ObjectPrompt):
                return _answer(image.ask(prompt, max_hole_area=self._max_hole_area))
            if prompt not in concepts:
                concepts[prompt] = _answer(image.ask(prompt))
            return concepts[prompt]

        return ask

    def has(self, image_id: str) -> bool:
        """True for every image."""
        return True


def _answer(found: Segmentation[Any]) -> Answer:
    logits = None if found.logits is None or len(found) == 0 else torch.as_tensor(found.logits[0])
    return Answer(torch.as_tensor(found.masks), torch.as_tensor(found.scores), logits, found.presence)


class EncoderWithDecoder:
    """An encoder's embedding, decoded by a frozen decoder. It answers boxes and points."""

    def __init__(self, name: str, encoder: Encoder, decoder: Decoder) -> None:
        """Join two that fit, which `open_models` has checked."""
        self.name, self._encoder, self.decoder = name, encoder, decoder
        self.preprocessing = encoder.preprocessing

    def embed(self, image_id: str, pixels: torch.Tensor) -> torch.Tensor:
        """See `Segmenter`."""
        return self._encoder.embed(image_id, pixels)

    def open(self, image_id: str, pixels: torch.Tensor) -> Ask:
        """See `Segmenter`."""
        placement = Placement.of(pixels.shape[-2], pixels.shape[-1], self.preprocessing)
        decode = self.decoder.open(self.embed(image_id, pixels), placement)

        def ask(prompt: Prompt) -> Answer:
            assert isinstance(prompt, ObjectPrompt), "text is refused before work begins"
            return decode(prompt)

        return ask

    def has(self, image_id: str) -> bool:
        """Whether the encoder has the image."""
        return self._encoder.has(image_id)


class Remembered:
    """A model whose answers are kept, as run lengths, and never computed twice."""

    def __init__(self, segmenter: Segmenter) -> None:
        """Wrap a model that always answers the same."""
        self.name, self.preprocessing = segmenter.name, segmenter.preprocessing
        self._segmenter: Segmenter | None = segmenter
        self._answers: dict[tuple[str, Prompt], tuple[list[Rle], torch.Tensor]] = {}
        self._known: set[str] = set()  # once the model is released

    def embed(self, image_id: str, pixels: torch.Tensor) -> torch.Tensor:
        """See `Segmenter`; embeddings are not kept."""
        assert self._segmenter is not None, "closed"
        return self._segmenter.embed(image_id, pixels)

    def open(self, image_id: str, pixels: torch.Tensor) -> Ask:
        """See `Segmenter`; the image is encoded at the first prompt that has not been answered before."""
        opened: list[Ask] = []

        def ask(prompt: Prompt) -> Answer:
            key = (image_id, prompt)
            if key not in self._answers:
                if not opened:
                    assert self._segmenter is not None, "closed"
                    opened.append(self._segmenter.open(image_id, pixels))
                answer = opened[0](prompt)
                self._answers[key] = ([to_rle(mask) for mask in answer.masks], answer.scores)
            rles, scores = self._answers[key]
            masks = [torch.from_numpy(rle.mask()) for rle in rles]
            return Answer(torch.stack(masks) if masks else torch.zeros(0, *pixels.shape[-2:]).bool(), scores)

        return ask

    def has(self, image_id: str) -> bool:
        """See `Segmenter`."""
        return image_id in self._known if self._segmenter is None else self._segmenter.has(image_id)

    def close(self) -> None:
        """Release the model; from now on, only prompts that were answered before are asked."""
        self._segmenter, self._known = None, {image_id for image_id, _ in self._answers}


def to_rle(mask: torch.Tensor) -> Rle:
    """A mask (H, W) bool as run lengths."""
    height, width = mask.shape
    return Rle(height, width, encode_rle(mask.numpy())["counts"])
