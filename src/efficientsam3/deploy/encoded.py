"""From an image embedding to answers: necks, prompts in the models' coordinates, answers in the picture's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torchvision.ops import box_convert
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from efficientsam3.runtime.errors import UserError

# A box with this label is padding to transformers.
PADDING_LABEL = -10


@dataclass(frozen=True)
class Picture:
    """Where a picture lies in the encoder's square input."""

    size: tuple[int, int]  # height, width in pixels
    content: tuple[int, int]  # height, width in pixels of the input that it covers, at its top left
    image_size: int

    def check_inside(self, coordinates: Sequence[float], what: str) -> None:
        """Refuse a point (x, y) or box (x0, y0, x1, y1) that is not in the picture.

        Raises:
            UserError: it is not, or the box is empty.
        """
        height, width = self.size
        xs, ys = coordinates[0::2], coordinates[1::2]
        inside = all(0 <= x <= width for x in xs) and all(0 <= y <= height for y in ys)
        if len(coordinates) not in (2, 4) or not inside:
            raise UserError(f"The {what} {list(coordinates)} is not in the picture of {width}x{height} pixels.")
        if len(coordinates) == 4 and not (xs[0] < xs[1] and ys[0] < ys[1]):
            raise UserError(f"The {what} {list(coordinates)} is empty: give x0 y0 x1 y1, the top left corner first.")

    def to_input_points(self, points: Sequence[Sequence[float]]) -> torch.Tensor:
        """(N, 2) pixels of the picture to pixels of the input."""
        scale = torch.tensor([self.content[1] / self.size[1], self.content[0] / self.size[0]])
        return torch.tensor(points, dtype=torch.float32).reshape(-1, 2) * scale

    def to_unit_boxes(self, boxes: Sequence[Sequence[float]]) -> torch.Tensor:
        """(N, 4) xyxy pixels of the picture to cxcywh in [0, 1] of the input."""
        corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 2, 2)
        scaled = self.to_input_points(corners.reshape(-1, 2).tolist()) / self.image_size
        unit: torch.Tensor = box_convert(scaled.reshape(-1, 4), "xyxy", "cxcywh")
        return unit

    def to_boxes(self, boxes: torch.Tensor) -> torch.Tensor:
        """(N, 4) xyxy in [0, 1] of the input to pixels of the picture."""
        height, width = self.size
        scale = [width / self.content[1], height / self.content[0]] * 2
        limits = torch.tensor([width, height] * 2, device=boxes.device)
        return (boxes * self.image_size * torch.tensor(scale, device=boxes.device)).clamp(min=0).minimum(limits)

    def to_masks(self, logits: torch.Tensor) -> torch.Tensor:
        """(N, h, w) logits over the input to (N, H, W) masks of the picture, by bilinear interpolation as in SAM3."""
        if self.content != (self.image_size, self.image_size):
            side = (self.image_size, self.image_size)
            logits = _resize(logits, side)[:, : self.content[0], : self.content[1]]
        return _resize(logits, self.size) > 0


def _resize(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if len(logits) == 0:
        return logits.new_zeros(0, *size)
    return torch.nn.functional.interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def grid_of(tokens: torch.Tensor) -> torch.Tensor:
    """An encoder's (B, G * G, D), row by row, to (B, D, G, G)."""
    side = round(int(tokens.shape[1]) ** 0.5)
    return tokens.transpose(1, 2).reshape(-1, tokens.shape[2], side, side)


def detector_features(detector: Any, embedding: torch.Tensor) -> Sam3VisionEncoderOutput:
    """What the detector makes of an embedding (1, D, G, G): its neck's four levels."""
    levels, positions = detector.vision_encoder.neck(embedding)
    return Sam3VisionEncoderOutput(
        last_hidden_state=embedding.flatten(2).transpose(1, 2),
        fpn_hidden_states=levels,
        fpn_position_encoding=positions,
    )


def ask_detector(
    detector: Any,
    features: Sam3VisionEncoderOutput,
    text: tuple[torch.Tensor, torch.Tensor],
    boxes: torch.Tensor,
    labels: list[int],
) -> Any:
    """Run the detector on one prompt.

    Args:
        detector: transformers' `Sam3Model`.
        features: of one picture.
        text: features (1, L, width) and mask (1, L) of the phrase.
        boxes: (N, 4) cxcywh in [0, 1] of the input.
        labels: 1 or 0 for each box.
    """
    device = text[0].device
    if len(boxes) == 0:
        # Meta's code always passes the geometry encoder's class token; transformers leaves it out when there is no box,
        # which changes the answer by 7 to 33 %. A box of padding brings it back.
        boxes, labels = torch.zeros(1, 4), [PADDING_LABEL]
    return detector(
        vision_embeds=features,
        text_embeds=BaseModelOutputWithPooling(pooler_output=text[0]),
        attention_mask=text[1],
        input_boxes=boxes[None].to(device),
        input_boxes_labels=torch.tensor([labels], device=device),
    )


def tracker_features(tracker: Any, embedding: torch.Tensor) -> list[torch.Tensor]:
    """What the interactive predictor makes of an embedding (1, D, G, G): levels of 4, 2 and 1 cells per cell.

    Written out, since `Sam3TrackerModel.get_image_embeddings` adds the "no memory" embedding to a fourth level that it
    then drops (seen in transformers 5.24), where Meta's code adds it to the third. That costs 2e-3 in the logits.
    """
    levels, _ = tracker.vision_encoder.neck(embedding)
    decoder = tracker.mask_decoder
    no_memory = tracker.no_memory_embedding.reshape(1, -1, 1, 1)
    return [decoder.conv_s0(levels[0]), decoder.conv_s1(levels[1]), levels[2] + no_memory]


def ask_tracker(
    tracker: Any, features: list[torch.Tensor], points: torch.Tensor, labels: list[int], box: torch.Tensor | None
) -> Any:
    """Run the interactive predictor on one object, for its three masks.

    Args:
        tracker: transformers' `Sam3TrackerModel`.
        features: of one picture.
        points: (N, 2) in pixels of the input.
        labels: 1 or 0 for each point.
        box: (2, 2) corners in pixels of the input, or None.
    """
    device = features[-1].device
    prompt: dict[str, torch.Tensor] = {}
    if len(points):
        prompt["input_points"] = points[None, None].to(device)
        prompt["input_labels"] = torch.tensor([[labels]], device=device)
    if box is not None:
        prompt["input_boxes"] = box.reshape(1, 1, 4).to(device)
    return tracker(image_embeddings=features, multimask_output=True, **prompt)
