"""Prompting SAM3 and EfficientSAM3: one door for native files and Hugging Face directories, teacher and student."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import CLIPTokenizer

from efficientsam3.data.images import read_rgb
from efficientsam3.data.preprocess import Preprocessing, normalise, resize_image
from efficientsam3.deploy.build import Models, build_models
from efficientsam3.deploy.contents import Contents, read_contents
from efficientsam3.deploy.encoded import (
    Picture,
    ask_detector,
    ask_tracker,
    detector_features,
    grid_of,
    tracker_features,
)
from efficientsam3.deploy.parts import VISUAL_PROMPT
from efficientsam3.deploy.tokenizer import build_tokenizer, tokenize
from efficientsam3.runtime.device import DeviceName, select_device
from efficientsam3.runtime.errors import UserError

Box = Sequence[float]
Point = Sequence[float]
PictureLike = str | Path | Image.Image | torch.Tensor | npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Segmentation:
    """Objects found in one picture, best first; on the CPU."""

    masks: torch.Tensor  # (N, H, W) bool
    boxes: torch.Tensor  # (N, 4) float32, xyxy in pixels
    scores: torch.Tensor  # (N,) float32 in [0, 1]

    def __len__(self) -> int:
        return len(self.scores)


class EfficientSAM3:
    """SAM3 or EfficientSAM3, ready to be prompted."""

    def __init__(self, contents: Contents, device: torch.device) -> None:
        """Build the models around tensors on disk and move them to a device; computes in float32."""
        self.device = device
        self.preprocessing: Preprocessing = contents.preprocessing
        self._models: Models = build_models(contents)
        for model in (self._models.detector, self._models.tracker):
            if model is not None:
                model.to(device)
        self._visual_prompt = contents.visual_prompt
        self._origin = contents.path
        self._tokenizer: CLIPTokenizer | None = None
        self._texts: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    @classmethod
    def from_pretrained(cls, path: str | Path, device: DeviceName = "auto") -> "EfficientSAM3":
        """Load a merged native file, a Hugging Face directory, or plain SAM3.

        Raises:
            UserError: there is none of them at `path`, or the device is not here.
        """
        if not Path(path).exists():
            raise UserError(
                f"Model {path} does not exist: give a merged .pt file, sam3.pt, or a Hugging Face directory."
            )
        return cls(read_contents(Path(path)), select_device(device))

    @torch.inference_mode()
    def encode(self, picture: PictureLike) -> "EncodedImage":
        """Run the image encoder once; the result answers any number of prompts.

        Args:
            picture: a path, a PIL picture, or RGB pixels: (3, H, W) uint8 tensor, (H, W, 3) uint8 array.

        Raises:
            UserError: the picture cannot be read, or is no RGB picture of 8 bits.
        """
        pixels = _to_pixels(picture)
        resized, content = resize_image(pixels, self.preprocessing)
        sizes = torch.tensor([content], device=self.device)
        normalised = normalise(resized[None].to(self.device), sizes, self.preprocessing)
        embedding = grid_of(self._models.encoder(normalised).last_hidden_state)  # [1, D, G, G]
        size = (pixels.shape[-2], pixels.shape[-1])
        return EncodedImage(self, Picture(size, content, self.preprocessing.image_size), embedding)

    @torch.inference_mode()
    def text_features(self, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (1, L, width) of a phrase and its mask (1, L), computed once per phrase.

        Raises:
            UserError: the model has no text encoder, or the phrase is empty or too long.
        """
        if text not in self._texts:
            self._texts[text] = self._encode_text(text)
        return self._texts[text]

    def _encode_text(self, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        detector = self.detector
        if detector.text_encoder is None:
            if text != VISUAL_PROMPT or self._visual_prompt is None:
                raise UserError(f"{self._origin} was merged without its text encoder: merge with --keep image,text.")
            features = self._visual_prompt[None].to(self.device, torch.float32)
            return features, torch.ones(features.shape[:2], dtype=torch.long, device=self.device)
        if self._tokenizer is None:
            self._tokenizer = build_tokenizer()
        ids, mask = (part.to(self.device) for part in tokenize(self._tokenizer, text))
        return detector.get_text_features(input_ids=ids, attention_mask=mask).pooler_output, mask

    @property
    def detector(self) -> Any:
        """transformers' `Sam3Model`.

        Raises:
            UserError: that part was left out.
        """
        if self._models.detector is None:
            raise UserError(f"{self._origin} was merged without its detector: merge with --keep image, or use points.")
        return self._models.detector

    @property
    def tracker(self) -> Any:
        """transformers' `Sam3TrackerModel`, the interactive predictor.

        Raises:
            UserError: that part was left out.
        """
        if self._models.tracker is None:
            raise UserError(f"{self._origin} was merged without its interactive predictor: merge with --keep tracker.")
        return self._models.tracker


class EncodedImage:
    """A picture whose embedding is computed."""

    def __init__(self, model: EfficientSAM3, picture: Picture, embedding: torch.Tensor) -> None:
        """Made by `EfficientSAM3.encode`; `embedding` is (1, D, G, G)."""
        self.embedding = embedding
        self.size = picture.size  # height, width in pixels
        self._model, self._picture = model, picture
        self._detector_features: Any = None
        self._tracker_features: list[torch.Tensor] | None = None

    def segment(
        self,
        text: str | None = None,
        *,
        boxes: Sequence[Box] = (),
        box_labels: Sequence[int] | None = None,
        points: Sequence[Point] = (),
        labels: Sequence[int] | None = None,
        object_box: Box | None = None,
        threshold: float = 0.5,
        candidates: bool = False,
    ) -> Segmentation:
        """Answer one prompt.

        `text` and `boxes` go to the detector, which finds every object that fits: a box is an example, "more like
        this" (label 1) or "not like this" (0), and without text the prompt is "visual", as in Meta's code. `points` and
        `object_box` go to the interactive predictor, which outlines one object.

        Args:
            text: a short noun phrase.
            boxes: examples, xyxy in pixels of the picture.
            box_labels: 1 or 0 for each box; all 1 by default.
            points: (x, y) in pixels, on the object or off it.
            labels: 1 (on) or 0 (off) for each point; all 1 by default.
            object_box: xyxy in pixels around the one object.
            threshold: lowest score that the detector's answers need; the interactive predictor's are not filtered.
            candidates: return the interactive predictor's three masks rather than its best.

        Returns:
            Detector: score = probability of the object x probability that the phrase is in the picture at all.
            Interactive predictor: score = predicted IoU with the true mask; the box is that of the mask.

        Raises:
            UserError: no prompt, prompts of both kinds, labels of prompts that are not there, a box or point outside
                the picture, or a part that is left out.
        """
        interactive = len(points) > 0 or object_box is not None
        if interactive == (text is not None or len(boxes) > 0):
            raise UserError(
                "Give either text and boxes (for the detector) or points and an object box (for the interactive "
                "predictor) in one prompt: ask twice to have both."
            )
        stray = "box_labels" if interactive else "labels"
        if (box_labels if interactive else labels) is not None:
            raise UserError(f"{stray} belongs to prompts of the other kind: points have labels, boxes have box_labels.")
        with torch.inference_mode():
            if interactive:
                marks = self._labels(points, labels, "point")
                return self._outline(points, marks, object_box, candidates)
            return self._detect(text, boxes, self._labels(boxes, box_labels, "box"), threshold)

    def _labels(self, prompts: Sequence[Sequence[float]], labels: Sequence[int] | None, what: str) -> list[int]:
        for prompt in prompts:
            self._picture.check_inside(prompt, what)
        given = [1] * len(prompts) if labels is None else list(labels)
        if len(given) != len(prompts) or not set(given) <= {0, 1}:
            raise UserError(f"{len(prompts)} {what} prompts have the labels {given}: give 1 or 0 for each.")
        return given

    def _detect(self, text: str | None, boxes: Sequence[Box], labels: list[int], threshold: float) -> Segmentation:
        features = self._model.text_features(VISUAL_PROMPT if text is None else text)
        if self._detector_features is None:
            self._detector_features = detector_features(self._model.detector, self.embedding)
        answer = ask_detector(
            self._model.detector, self._detector_features, features, self._picture.to_unit_boxes(boxes), labels
        )
        scores = answer.pred_logits[0].sigmoid() * answer.presence_logits[0].sigmoid()  # [Q]
        kept = torch.nonzero(scores > threshold).flatten()
        kept = kept[scores[kept].argsort(descending=True, stable=True)]
        masks = self._picture.to_masks(answer.pred_masks[0, kept])
        return Segmentation(masks.cpu(), self._picture.to_boxes(answer.pred_boxes[0, kept]).cpu(), scores[kept].cpu())

    def _outline(self, points: Sequence[Point], labels: list[int], box: Box | None, candidates: bool) -> Segmentation:
        if box is not None:
            self._picture.check_inside(box, "box")
        if self._tracker_features is None:
            self._tracker_features = tracker_features(self._model.tracker, self.embedding)
        answer = ask_tracker(
            self._model.tracker,
            self._tracker_features,
            self._picture.to_input_points(points),
            labels,
            None if box is None else self._picture.to_input_points([box[:2], box[2:]]),
        )
        scores = answer.iou_scores[0, 0]  # [3]
        order = scores.argsort(descending=True, stable=True)[: None if candidates else 1]
        masks = self._picture.to_masks(answer.pred_masks[0, 0, order]).cpu()
        return Segmentation(masks, boxes_of_masks(masks), scores[order].clamp(0, 1).cpu())


def boxes_of_masks(masks: torch.Tensor) -> torch.Tensor:
    """Tight boxes (N, 4) xyxy of masks (N, H, W), in pixel edges; zeros for an empty mask."""
    boxes = torch.zeros(len(masks), 4)
    for index, mask in enumerate(masks):
        rows, columns = torch.nonzero(mask.any(1)).flatten(), torch.nonzero(mask.any(0)).flatten()
        if len(rows):
            boxes[index] = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
    return boxes


def _to_pixels(picture: PictureLike) -> torch.Tensor:
    if isinstance(picture, str | Path):
        return read_rgb(Path(picture))
    if isinstance(picture, Image.Image):
        picture = np.asarray(picture.convert("RGB"))
    pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1) if isinstance(picture, np.ndarray) else picture
    if pixels.ndim != 3 or pixels.shape[0] != 3 or pixels.dtype != torch.uint8:
        raise UserError(
            f"A picture of shape {tuple(pixels.shape)} and {pixels.dtype} is not RGB of 8 bits: give (3, H, W) uint8 "
            "as a tensor or (H, W, 3) uint8 as an array."
        )
    return pixels
