"""Prompting SAM3 and EfficientSAM3 by PyTorch: native files and Hugging Face directories, teacher and student."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import CLIPTokenizer

from efficientsam3.data.preprocess import Preprocessing, prepare
from efficientsam3.runtime.device import DeviceName, select_device
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.build import Models, build_models
from efficientsam3.sam3.contents import Contents, read_contents
from efficientsam3.sam3.geometry import Placement, boxes_of_masks
from efficientsam3.sam3.parts import VISUAL_PROMPT
from efficientsam3.sam3.promptable import Pixels, Promptable, Segmentation, finite, not_rgb, ranked, to_pixels
from efficientsam3.sam3.prompts import ConceptPrompt, ObjectPrompt
from efficientsam3.sam3.text import build_tokenizer, tokenize
from efficientsam3.sam3.torch_calls import (
    ask_detector,
    detector_features,
    grid_of,
    masks_to_image,
    track_object,
    tracker_features,
)

ImageLike = str | Path | Image.Image | torch.Tensor | Pixels


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
        self._visual_prompt = (
            None if contents.visual_prompt is None else contents.visual_prompt.clone()
        )  # see build_model
        self._origin = contents.path
        self._tokenizer: CLIPTokenizer | None = None
        self._texts: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    @classmethod
    def from_pretrained(cls, path: str | Path, device: DeviceName = "auto") -> "EfficientSAM3":
        """Load a merged native file, a Hugging Face directory, or plain SAM3.

        Raises:
            UserError: there is no such model at `path`, or this machine does not have the device.
        """
        if not Path(path).exists():
            raise UserError(
                f"Model {path} does not exist: give a merged .pt file, sam3.pt, or a Hugging Face directory."
            )
        return cls(read_contents(Path(path)), select_device(device))

    @torch.inference_mode()
    def encode(self, image: ImageLike) -> "EncodedImage":
        """Run the image encoder once; the result answers any number of prompts.

        Args:
            image: a path, a PIL image, or RGB pixels: (3, H, W) uint8 tensor, (H, W, 3) uint8 array.

        Raises:
            UserError: the image cannot be read, or is not RGB of 8 bits.
        """
        pixels = _to_tensor(image)
        encoded = self._models.encoder(prepare(pixels, self.preprocessing, self.device))
        embedding = finite(grid_of(encoded.last_hidden_state), "an embedding")  # [1, D, G, G]
        return EncodedImage(self, Placement.of(pixels.shape[-2], pixels.shape[-1], self.preprocessing), embedding)

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
        ids, mask = (part.to(self.device) for part in tokenize(self._tokenizer, text, detector.config.text_config))
        return detector.get_text_features(input_ids=ids, attention_mask=mask).pooler_output, mask

    @property
    def detector(self) -> Any:
        """transformers' `Sam3Model`.

        Raises:
            UserError: the model was merged without its detector.
        """
        if self._models.detector is None:
            raise UserError(f"{self._origin} was merged without its detector: merge with --keep image, or use points.")
        return self._models.detector

    @property
    def tracker(self) -> Any:
        """transformers' `Sam3TrackerModel`.

        Raises:
            UserError: the model was merged without its tracker.
        """
        if self._models.tracker is None:
            raise UserError(f"{self._origin} was merged without its tracker: merge with --keep tracker.")
        return self._models.tracker


class EncodedImage(Promptable[torch.Tensor]):
    """An image whose embedding is computed; `segment` answers with tensors."""

    def __init__(self, model: EfficientSAM3, placement: Placement, embedding: torch.Tensor) -> None:
        """Made by `EfficientSAM3.encode`; `embedding` is (1, D, G, G)."""
        super().__init__(placement)
        self.embedding = embedding
        self._model = model
        self._detector_features: Any = None
        self._tracker_features: list[torch.Tensor] | None = None

    @torch.inference_mode()
    def _detect(self, prompt: ConceptPrompt, threshold: float) -> Segmentation[torch.Tensor]:
        phrase = self._model.text_features(prompt.phrase)
        if self._detector_features is None:
            self._detector_features = detector_features(self._model.detector, self.embedding)
        boxes = self._placement.boxes_to_input(prompt.boxes)
        answer = ask_detector(self._model.detector, self._detector_features, phrase, boxes, list(prompt.labels))
        scores = answer.pred_logits[0].sigmoid() * answer.presence_logits[0].sigmoid()
        scores = finite(scores.cpu(), "scores")  # [Q]
        kept = torch.from_numpy(ranked(scores.numpy(), threshold))
        logits = finite(answer.pred_masks[0, kept.to(self.embedding.device)], "masks")
        masks = masks_to_image(self._placement, logits).cpu()
        found = self._placement.boxes_to_image(answer.pred_boxes[0].cpu().numpy())
        presence = float(answer.presence_logits.sigmoid().flatten()[0])
        return Segmentation(masks, torch.from_numpy(found)[kept], scores[kept], presence=presence)

    @torch.inference_mode()
    def _track(self, prompt: ObjectPrompt, candidates: bool, max_hole_area: int) -> Segmentation[torch.Tensor]:
        if self._tracker_features is None:
            self._tracker_features = tracker_features(self._model.tracker, self.embedding)
        logits, ious = track_object(self._model.tracker, self._tracker_features, self._placement, prompt)
        scores = finite(ious.cpu(), "scores")  # [3]
        order = torch.from_numpy(ranked(scores.numpy()))[: None if candidates else 1]
        chosen = finite(logits[order.to(self.embedding.device)], "masks")
        masks = masks_to_image(self._placement, chosen, max_hole_area).cpu()
        boxes = torch.from_numpy(boxes_of_masks(masks.numpy()))
        return Segmentation(masks, boxes, scores[order].clamp(0, 1), chosen.float().cpu())


def _to_tensor(image: ImageLike) -> torch.Tensor:
    """(3, H, W) uint8 RGB."""
    if not isinstance(image, torch.Tensor):
        return torch.from_numpy(to_pixels(image).copy()).permute(2, 0, 1)
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
        raise not_rgb(image)
    return image
