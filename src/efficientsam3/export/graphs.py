"""The parts of a model as modules from tensors to tensors, which is what an exporter can trace.

The image encoder is the trunk alone. A neck costs more than a small student and serves one of the two prompt decoders,
so each neck is a graph between them: it runs once per image, and only where its decoder is asked.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from efficientsam3.export.ports import DETECTOR_LEVELS, EMBEDDING, PIXELS, TRACKER_LEVELS, GraphName, Port
from efficientsam3.models.fuse import fuse_modules
from efficientsam3.models.student import Student
from efficientsam3.sam3.build import Models
from efficientsam3.sam3.promptable import PADDING_LABEL
from efficientsam3.sam3.text import CONTEXT_LENGTH, padding_of
from efficientsam3.sam3.torch_calls import grid_of, tracker_features

Outputs = tuple[torch.Tensor, ...]
_BATCH = {0: "batch"}
_DTYPES = {torch.float32: "float", torch.int64: "int64"}


@dataclass(frozen=True)
class Graph:
    """A part of a model and how it is called."""

    name: GraphName
    module: nn.Module
    inputs: dict[str, torch.Tensor]  # examples, two long where the length is free
    outputs: dict[str, dict[int, str]]  # name -> axis -> name of its length, where that is free
    axes: dict[str, dict[int, str]]  # the same for the inputs

    @torch.inference_mode()
    def run(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Outputs by PyTorch."""
        answer = self.module(*inputs.values())
        return dict(zip(self.outputs, (answer,) if isinstance(answer, torch.Tensor) else answer, strict=True))

    @property
    def fused(self) -> nn.Module:
        """The module in eval mode, an image encoder's BatchNorms and branches fused.

        Runtimes fold BatchNorms into convolutions by themselves, but do not make one convolution of RepViT's branches.
        """
        module = self.module.eval()
        if self.name != "image_encoder" or not any(isinstance(each, nn.BatchNorm2d) for each in module.modules()):
            return module
        return fuse_modules(module, self.inputs[PIXELS].shape)

    @cached_property
    def ports(self) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
        """Inputs and outputs with the shapes that the examples have."""
        return (
            tuple(_port(name, value, self.axes.get(name, {})) for name, value in self.inputs.items()),
            tuple(_port(name, value, self.outputs[name]) for name, value in self.run(self.inputs).items()),
        )


def _port(name: str, value: torch.Tensor, axes: dict[int, str]) -> Port:
    shape = tuple(axes.get(axis, length) for axis, length in enumerate(value.shape))
    return Port(name=name, dtype=_DTYPES[value.dtype], shape=shape)


def build_graphs(models: Models, image_size: int) -> list[Graph]:
    """The graphs of a model on the CPU, in the order in which they run; none for a part that it lacks."""
    pixels = _noise(2, 3, image_size, image_size)
    graphs = [_graph("image_encoder", ImageEncoder(models.encoder), {PIXELS: pixels}, [EMBEDDING])]
    with torch.no_grad():
        embedding = graphs[0].module(pixels)
    if models.detector is not None:
        neck = _graph("detector_neck", DetectorNeck(models.detector), {EMBEDDING: embedding}, DETECTOR_LEVELS)
        if models.detector.text_encoder is not None:
            graphs.append(_text_encoder(models.detector))
        graphs += [neck, _detector(models.detector, neck)]
    if models.tracker is not None:
        neck = _graph("interactive_neck", TrackerNeck(models.tracker), {EMBEDDING: embedding}, TRACKER_LEVELS)
        graphs += [neck, _tracker(models.tracker, neck)]
    return graphs


def student_graph(student: Student) -> Graph:
    """A student, on the CPU and in eval mode, as an image encoder."""
    side = student.architecture.image_size
    return _graph("image_encoder", student, {PIXELS: _noise(2, 3, side, side)}, [EMBEDDING])


class ImageEncoder(nn.Module):
    """The trunk: pixels (B, 3, S, S) to an embedding (B, D, G, G)."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return grid_of(self.encoder(pixels).last_hidden_state)


class TextEncoder(nn.Module):
    """Token ids and mask, each (B, L) int64, to features (B, L, width) in the detector's width."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, input_ids: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.detector.get_text_features(
            input_ids=input_ids, attention_mask=text_mask
        ).pooler_output
        if getattr(self.detector.config.text_config, "padding", None) == "published":
            # Its attention has no mask, and the graph would lose the input that all others have.
            features = features * text_mask[..., None].to(features.dtype)
        return features


class DetectorNeck(nn.Module):
    """Embedding (B, D, G, G) to the three levels that the detector uses, (B, width, kG, kG) for k = 4, 2, 1."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.neck = detector.vision_encoder.neck

    def forward(self, embedding: torch.Tensor) -> Outputs:
        levels, _ = self.neck(embedding)
        return tuple(levels[: len(DETECTOR_LEVELS)])


class Detector(nn.Module):
    """One image's levels, features (1, L, width) and mask (1, L) of a phrase, boxes (1, N, 4) and labels (1, N).

    Boxes are cxcywh in [0, 1] of the input, labels 1, 0, or -10 for padding; without a box, give one of padding.

    Returns:
        scores (1, Q) in [0, 1], of the object times that of the phrase's presence; boxes (1, Q, 4) xyxy in [0, 1] of
        the input; mask logits (1, Q, 4G, 4G).
    """

    def __init__(self, detector: Any, grid: int) -> None:
        super().__init__()
        self.detector = detector
        level = torch.empty(1, detector.config.vision_config.fpn_hidden_size, grid, grid)
        position = detector.vision_encoder.neck.position_encoding(level.shape, level.device, level.dtype)
        self.register_buffer("position", position, persistent=False)

    def forward(
        self,
        fine: torch.Tensor,
        middle: torch.Tensor,
        coarse: torch.Tensor,
        text: torch.Tensor,
        text_mask: torch.Tensor,
        boxes: torch.Tensor,
        box_labels: torch.Tensor,
    ) -> Outputs:
        # transformers drops the last level, and uses the coarsest of the others alone with its position.
        features = Sam3VisionEncoderOutput(
            fpn_hidden_states=(fine, middle, coarse, coarse), fpn_position_encoding=(self.position,) * 4
        )
        answer = self.detector(
            vision_embeds=features,
            text_embeds=BaseModelOutputWithPooling(pooler_output=text),
            attention_mask=text_mask,
            input_boxes=boxes,
            input_boxes_labels=box_labels,
        )
        scores = answer.pred_logits.sigmoid() * answer.presence_logits.sigmoid()
        return scores, answer.pred_boxes, answer.pred_masks


class TrackerNeck(nn.Module):
    """Embedding (B, D, G, G) to the three levels that the tracker uses, of 4G, 2G and G cells per side."""

    def __init__(self, tracker: Any) -> None:
        super().__init__()
        self.tracker = tracker

    def forward(self, embedding: torch.Tensor) -> Outputs:
        return tuple(tracker_features(self.tracker, embedding))


class Tracker(nn.Module):
    """Levels of B images, points (B, N, 2) in pixels of the input, and their labels (B, N) int64.

    Labels are 1 (on the object), 0 (off it), 2 and 3 (the top left and bottom right corner of a box around it), as in
    the original SAM's prompt encoder; -1 and -10 pad, as in transformers' `Sam3TrackerModel`.

    Returns:
        mask logits (B, 3, 4G, 4G) and predicted IoUs (B, 3).
    """

    def __init__(self, tracker: Any) -> None:
        super().__init__()
        self.tracker = tracker

    def forward(
        self, fine: torch.Tensor, middle: torch.Tensor, coarse: torch.Tensor, points: torch.Tensor, labels: torch.Tensor
    ) -> Outputs:
        answer = self.tracker(
            image_embeddings=[fine, middle, coarse],
            input_points=points[:, None],
            input_labels=labels[:, None],
            multimask_output=True,
        )
        return answer.pred_masks[:, 0], answer.iou_scores[:, 0]


def _graph(name: GraphName, module: nn.Module, inputs: dict[str, torch.Tensor], outputs: Any) -> Graph:
    """A graph with only a dynamic batch axis."""
    return Graph(name, module, inputs, dict.fromkeys(outputs, _BATCH), dict.fromkeys(inputs, _BATCH))


def _text_encoder(detector: Any) -> Graph:
    length, _ = padding_of(detector.config.text_config)
    ids, mask = torch.ones(2, length, dtype=torch.long), torch.ones(2, length, dtype=torch.long)
    return _graph("text_encoder", TextEncoder(detector), {"input_ids": ids, "text_mask": mask}, ["text_features"])


@torch.no_grad()
def _levels(neck: Graph, images: int) -> dict[str, torch.Tensor]:
    levels = neck.module(next(iter(neck.inputs.values()))[:images])
    return dict(zip(neck.outputs, levels, strict=True))


def _detector(detector: Any, neck: Graph) -> Graph:
    levels = _levels(neck, 1)  # one image: boxes are pooled image by image
    coarse = levels[DETECTOR_LEVELS[-1]]
    inputs = levels | {
        "text_features": _noise(1, CONTEXT_LENGTH, coarse.shape[1]),
        "text_mask": torch.ones(1, CONTEXT_LENGTH, dtype=torch.long),
        "boxes": torch.full((1, 3, 4), 0.25),
        "box_labels": torch.tensor([[1, 0, PADDING_LABEL]]),
    }
    tokens, boxes = {1: "tokens"}, {1: "boxes"}
    axes = {"text_features": tokens, "text_mask": tokens, "boxes": boxes, "box_labels": boxes}
    outputs: dict[str, dict[int, str]] = {"scores": {}, "pred_boxes": {}, "mask_logits": {}}
    return Graph("detector", Detector(detector, coarse.shape[-1]), inputs, outputs, axes)


def _tracker(tracker: Any, neck: Graph) -> Graph:
    inputs = _levels(neck, 2) | {"points": _noise(2, 3, 2), "labels": torch.tensor([[1, 0, 2], [1, 3, PADDING_LABEL]])}
    points = {0: "batch", 1: "points"}
    axes = dict.fromkeys(TRACKER_LEVELS, _BATCH) | {"points": points, "labels": points}
    return Graph("interactive", Tracker(tracker), inputs, {"mask_logits": _BATCH, "iou_scores": _BATCH}, axes)


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))
