"""SAM3's frozen detector in PyTorch: from an embedding and prompts to all its queries' answers, differentiably.

The neck, geometry encoder, DETR encoder and decoder, mask head, scoring and presence are transformers' modules.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from efficientsam3.data.preprocess import sam3_preprocessing
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.build import DETECTOR, build_detector
from efficientsam3.sam3.contents import read_contents
from efficientsam3.sam3.parts import VISUAL_PROMPT
from efficientsam3.sam3.text import build_tokenizer, tokenize
from efficientsam3.sam3.torch_calls import detector_features

_ENCODED_AT_ONCE = 64  # phrases


@dataclass(frozen=True)
class Concepts:
    """Prompts of the detector: a phrase, or an example with the phrase `VISUAL_PROMPT`."""

    images: torch.Tensor  # (P,) int64: which image of the batch each is about
    phrases: torch.Tensor  # (P,) int64: places among the detector's phrases
    boxes: torch.Tensor  # (P, 4) cxcywh in [0, 1] of the input, of the example; any where there is none
    labels: torch.Tensor  # (P,) int64: 1, or `promptable.PADDING_LABEL` where there is no example

    def parts(self, most: int) -> Iterator["Concepts"]:
        """The same, at most so many together."""
        fields = (self.images, self.phrases, self.boxes, self.labels)
        yield from (Concepts(*part) for part in zip(*(torch.split(field, most) for field in fields), strict=True))


@dataclass(frozen=True)
class Detections:
    """What each of the detector's queries answers."""

    masks: torch.Tensor  # (P, Q, 4G, 4G) logits over the encoder's input
    boxes: torch.Tensor  # (P, Q, 4) xyxy in [0, 1] of the input
    logits: torch.Tensor  # (P, Q) of the object's score, given that the phrase is in the image
    presence: torch.Tensor  # (P,) logits of whether it is

    @property
    def scores(self) -> torch.Tensor:
        """(P, Q) in [0, 1], what SAM3 filters by."""
        return self.logits.sigmoid() * self.presence.sigmoid()[:, None]


class Detector(nn.Module):
    """A frozen detector with the phrases that it can be asked. Gradients flow to the embedding.

    The decoder passes none on through the boxes that its layers refer to: transformers detaches them.
    """

    _ids: torch.Tensor
    _mask: torch.Tensor
    _texts: torch.Tensor

    def __init__(self, detector: Any, phrases: Sequence[str]) -> None:
        """Take over a detector, in eval mode and without gradients of its own.

        Args:
            detector: transformers' `Sam3Model` with its text encoder, which `encode_phrases` takes out.
            phrases: all that it will be asked, beside VISUAL_PROMPT.

        Raises:
            PromptError: a phrase is empty, or longer than the text encoder takes.
            UserError: the tokenizer's vocabulary is not installed.
        """
        super().__init__()
        self.detector = detector
        backbone = detector.config.vision_config.backbone_config
        self.embed_dim: int = backbone.hidden_size
        self.embed_size: int = backbone.image_size // backbone.patch_size  # G
        self.preprocessing = sam3_preprocessing(backbone.image_size)
        self._places = {phrase: place for place, phrase in enumerate(dict.fromkeys([VISUAL_PROMPT, *phrases]))}
        tokenizer = build_tokenizer()
        tokens = [tokenize(tokenizer, phrase, detector.config.text_config) for phrase in self._places]
        ids, mask = (torch.cat(parts) for parts in zip(*tokens, strict=True))
        self.register_buffer("_ids", ids, persistent=False)
        self.register_buffer("_mask", mask, persistent=False)
        self.register_buffer("_texts", torch.empty(0), persistent=False)  # [N, L, width] once they are encoded
        self.eval().requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        """Of what is computed."""
        dtype: torch.dtype = self.detector.dtype
        return dtype

    @torch.no_grad()
    def encode_phrases(self) -> None:
        """Compute the features of all phrases, once; the text encoder is of no use then and is dropped."""
        if self.detector.text_encoder is None:
            return
        chunks = zip(*(torch.split(part, _ENCODED_AT_ONCE) for part in (self._ids, self._mask)), strict=True)
        features = [self.detector.get_text_features(input_ids=ids, attention_mask=mask) for ids, mask in chunks]
        self._texts = torch.cat([part.pooler_output for part in features])
        self.detector.text_encoder = self.detector.text_projection = None

    def places(self, phrases: Sequence[str]) -> list[int]:
        """The phrases' places, for `Concepts`."""
        return [self._places[phrase] for phrase in phrases]

    @property
    def neck(self) -> nn.Module:
        """What the embedding passes first."""
        neck: nn.Module = self.detector.vision_encoder.neck
        return neck

    def features(self, embedding: torch.Tensor, neck: nn.Module | None = None) -> Sam3VisionEncoderOutput:
        """What is computed once for all prompts of a batch's images: the neck's levels.

        Args:
            embedding: (B, embed_dim, G, G) float, of the teacher's scale.
            neck: in the place of its own.
        """
        return detector_features(self.detector, embedding, neck)

    def forward(self, features: Sam3VisionEncoderOutput, concepts: Concepts) -> Detections:
        """All queries' answers to each prompt.

        Args:
            features: of the images, see `features`.
            concepts: at least one; their phrases are encoded.
        """
        images = concepts.images
        answer = self.detector(
            vision_embeds=Sam3VisionEncoderOutput(
                fpn_hidden_states=tuple(level[images] for level in features.fpn_hidden_states),
                fpn_position_encoding=tuple(level.expand(len(images), -1, -1, -1) for level in _positions(features)),
            ),
            text_embeds=BaseModelOutputWithPooling(pooler_output=self._texts[concepts.phrases]),
            attention_mask=self._mask[concepts.phrases],
            # Without an example there is a box of padding, see `torch_calls.ask_detector`.
            input_boxes=concepts.boxes[:, None],
            input_boxes_labels=concepts.labels[:, None],
        )
        return Detections(answer.pred_masks, answer.pred_boxes, answer.pred_logits, answer.presence_logits[:, 0])


def _positions(features: Sam3VisionEncoderOutput) -> list[torch.Tensor]:
    """Position encodings (1, C, h, w) of the levels, the same for all images."""
    return [level[:1] for level in features.fpn_position_encoding]


def load_detector(path: Path, phrases: Sequence[str]) -> Detector:
    """Open the detector of a SAM3 or EfficientSAM3, float32, on the CPU, without its image encoder.

    Raises:
        UserError: there is no SAM3 at `path`, it was merged without its detector or text encoder, or a phrase does not
            fit the text encoder.
    """
    if not path.exists():
        raise UserError(f"The detector's checkpoint {path} does not exist: give a SAM3.")
    if path.suffix == ".onnx":
        raise UserError(f"{path} is a mask decoder, not a detector: give the teacher, a SAM3.")
    contents = read_contents(path)
    if not contents.has(DETECTOR):
        raise UserError(f"{path} was merged without its detector: give the teacher, or merge with --keep image,text.")
    detector: Any = build_detector(contents, with_backbone=False)
    if detector.text_encoder is None:
        raise UserError(
            f"{path} was merged without its text encoder: give the teacher, or merge with --keep image,text."
        )
    return Detector(detector, phrases)
