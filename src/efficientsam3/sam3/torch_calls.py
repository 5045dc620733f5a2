"""From an image embedding to logits by PyTorch: the necks, the detector and the tracker."""

from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from efficientsam3.sam3.geometry import Floats, Placement
from efficientsam3.sam3.holes import fill_holes
from efficientsam3.sam3.promptable import PADDING_LABEL
from efficientsam3.sam3.prompts import ObjectPrompt

MASK_LIMIT = 32.0  # Meta's interactive predictor returns, and so is fed, logits within it


def masks_to_image(placement: Placement, logits: torch.Tensor, max_hole_area: int = 0) -> torch.Tensor:
    """`Placement.masks_to_image` on the device of the logits (N, h, w): (N, H, W) bool."""
    if max_hole_area > 0:
        logits = torch.from_numpy(fill_holes(logits.float().cpu().numpy(), max_hole_area)).to(logits.device)
    side = (placement.image_size, placement.image_size)
    if placement.content != side:
        logits = _resize(logits, side)[:, : placement.content[0], : placement.content[1]]
    return _resize(logits, placement.size) > 0


def _resize(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if len(logits) == 0:
        return logits.new_zeros(0, *size)
    return torch.nn.functional.interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def grid_of(tokens: torch.Tensor) -> torch.Tensor:
    """An encoder's (B, G * G, D), row by row, to (B, D, G, G)."""
    side = round(int(tokens.shape[1]) ** 0.5)
    return tokens.transpose(1, 2).reshape(-1, tokens.shape[2], side, side)


def detector_features(detector: Any, embedding: torch.Tensor, neck: Any = None) -> Sam3VisionEncoderOutput:
    """The detector's features of an embedding (1, D, G, G): the four levels of its neck, or of one in its place."""
    levels, positions = (neck or detector.vision_encoder.neck)(embedding)
    return Sam3VisionEncoderOutput(
        last_hidden_state=embedding.flatten(2).transpose(1, 2),
        fpn_hidden_states=levels,
        fpn_position_encoding=positions,
    )


def ask_detector(
    detector: Any,
    features: Sam3VisionEncoderOutput,
    text: tuple[torch.Tensor, torch.Tensor],
    boxes: Floats | torch.Tensor,
    labels: list[int],
) -> Any:
    """Run the detector on one prompt.

    Args:
        detector: transformers' `Sam3Model`.
        features: of one image.
        text: features (1, L, width) and mask (1, L) of the phrase.
        boxes: (N, 4) cxcywh in [0, 1] of the input.
        labels: 1 or 0 for each box.
    """
    device = text[0].device
    given = torch.as_tensor(boxes)
    if len(given) == 0:
        # Meta's code always passes the geometry encoder's class token; transformers omits it when there is no box,
        # which changes the answer by 7 to 33 %. A box of padding brings it back.
        given, labels = torch.zeros(1, 4), [PADDING_LABEL]
    return detector(
        vision_embeds=features,
        text_embeds=BaseModelOutputWithPooling(pooler_output=text[0]),
        attention_mask=text[1],
        input_boxes=given[None].to(device),
        input_boxes_labels=torch.tensor([labels], device=device),
    )


def tracker_features(tracker: Any, embedding: torch.Tensor, neck: Any = None) -> list[torch.Tensor]:
    """The tracker's features of an embedding (1, D, G, G): levels of 4, 2 and 1 cells per cell, of its neck or another.

    Written out, since `Sam3TrackerModel.get_image_embeddings` adds the "no memory" embedding to a fourth level that it
    then drops (seen in transformers 5.24), where Meta's code adds it to the third. That costs 2e-3 in the logits.
    """
    levels, _ = (neck or tracker.vision_encoder.neck)(embedding)
    decoder = tracker.mask_decoder
    no_memory = tracker.no_memory_embedding.reshape(1, -1, 1, 1)
    return [decoder.conv_s0(levels[0]), decoder.conv_s1(levels[1]), levels[2] + no_memory]


def ask_tracker(
    tracker: Any,
    features: list[torch.Tensor],
    points: Floats | torch.Tensor,
    labels: list[int],
    box: Floats | torch.Tensor | None,
    mask: torch.Tensor | None = None,
) -> Any:
    """Run the tracker on one object, for its three masks.

    Args:
        tracker: transformers' `Sam3TrackerModel`.
        features: of one image.
        points: (N, 2) in pixels of the input.
        labels: 1 or 0 for each point.
        box: (2, 2) corners in pixels of the input, or None.
        mask: logits (h, w) of an earlier answer, or None.
    """
    device = features[-1].device
    prompt: dict[str, torch.Tensor] = {}
    if len(points):
        prompt["input_points"] = torch.as_tensor(points)[None, None].to(device)
        prompt["input_labels"] = torch.tensor([[labels]], device=device)
    if box is not None:
        prompt["input_boxes"] = torch.as_tensor(box).reshape(1, 1, 4).to(device)
    if mask is not None:
        prompt["input_masks"] = mask[None, None].clamp(-MASK_LIMIT, MASK_LIMIT).to(device)
    return tracker(image_embeddings=features, multimask_output=True, **prompt)


def track_object(
    tracker: Any, features: list[torch.Tensor], placement: Placement, prompt: ObjectPrompt
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the tracker on a prompt in pixels of the image.

    Returns:
        mask logits (3, h, w) over the input, and predicted IoUs (3,).
    """
    points = placement.points_to_input(prompt.points)
    box = placement.points_to_input(prompt.corners) if prompt.corners else None
    answer = ask_tracker(tracker, features, points, list(prompt.labels), box, prompt.mask)
    return answer.pred_masks[0, 0], answer.iou_scores[0, 0]
