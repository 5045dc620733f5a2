"""Frozen interactive predictors in PyTorch: from an embedding and prompts to all candidate masks, differentiably.

SAM's prompt encoder and mask decoder as ONNX, or SAM3's tracker: either is transformers' modules, in one `Predictor`.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.decoders import OnnxDecoder, Sam3Decoder, TakesEmbeddings
from efficientsam3.sam3.sam_onnx import REMEDY, build_sam
from efficientsam3.sam3.torch_calls import MASK_LIMIT, tracker_features

_TOLERANCE = 1e-3  # of the largest value, between PyTorch and ONNX Runtime in float32


@dataclass(frozen=True)
class Prompts:
    """Prompts of one kind, each for one object of one image, in pixels of the encoder's input."""

    images: torch.Tensor  # (P,) int64: which image of the batch each is about
    points: torch.Tensor  # (P, N, 2) x, y; N may be 0 where there are boxes
    labels: torch.Tensor  # (P, N) int64: 1 on the object, 0 off it
    boxes: torch.Tensor | None = None  # (P, 4) x0, y0, x1, y1
    masks: torch.Tensor | None = None  # (P, 1, 4G, 4G) logits, such as an earlier answer

    def with_points(self, points: torch.Tensor, labels: torch.Tensor) -> "Prompts":
        """The same prompts with one more point (P, 2) each, and its label (P,)."""
        return replace(
            self,
            points=torch.cat([self.points, points[:, None]], dim=1),
            labels=torch.cat([self.labels, labels[:, None]], dim=1),
        )

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Candidates:
    """Every mask that a decoder has for each prompt: the single one first, then those for ambiguous prompts."""

    logits: torch.Tensor  # (P, M, 4G, 4G) over the encoder's input
    ious: torch.Tensor  # (P, M) predicted


class Predictor(nn.Module):
    """A frozen prompt encoder and two-way mask decoder: https://arxiv.org/abs/2304.02643, appendix A.

    Gradients flow to the embedding. transformers' own modules compute; the last step is written out here because their
    `forward` gives either the single mask or the others, each at the cost of all.
    """

    _positions: torch.Tensor

    def __init__(self, prompt_encoder: Any, mask_decoder: Any, decoder: TakesEmbeddings) -> None:
        """Put them together, in eval mode and without gradients of their own.

        Args:
            prompt_encoder: transformers' `SamPromptEncoder` or `Sam3TrackerPromptEncoder`.
            mask_decoder: transformers' `SamMaskDecoder` or `Sam3TrackerMaskDecoder`.
            decoder: says which embeddings it takes.
        """
        super().__init__()
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.embed_dim = decoder.embed_dim
        self.embed_size = embed_size = decoder.embed_size  # G
        self.preprocessing = decoder.preprocessing
        middles = (torch.arange(embed_size) + 0.5) / embed_size
        grid = torch.stack(torch.meshgrid(middles, middles, indexing="xy"), dim=-1)[None]  # [1, G, G, 2] as x, y
        with torch.no_grad():
            positions = self.prompt_encoder.shared_embedding(grid)
        self.register_buffer("_positions", positions.permute(0, 3, 1, 2), persistent=False)
        self.eval().requires_grad_(False)

    @property
    def neck(self) -> nn.Module | None:
        """What the embedding passes first; None for SAM's decoder, which reads the embedding itself."""
        return None

    def features(self, embedding: torch.Tensor, neck: nn.Module | None = None) -> list[torch.Tensor]:
        """What is computed once for all prompts of a batch's images: maps of 4G and 2G (SAM3 alone), and G a side.

        Args:
            embedding: (B, embed_dim, G, G) float, of the teacher's scale.
            neck: in the place of its own.
        """
        return [embedding]

    def forward(self, features: list[torch.Tensor], prompts: Prompts) -> Candidates:
        """All candidate masks of each prompt.

        Args:
            features: of the images, see `features`.
            prompts: at least one.
        """
        has_points = prompts.points.shape[1] > 0
        sparse, dense = self.prompt_encoder(
            prompts.points[:, None] if has_points else None,
            prompts.labels[:, None] if has_points else None,
            None if prompts.boxes is None else prompts.boxes[:, None],
            prompts.masks,
        )
        decoder = self.mask_decoder
        *finer, coarse = (level[prompts.images] for level in features)
        output = torch.cat([table.weight for table in self._output_tokens()])
        tokens = torch.cat([output.expand(len(prompts), 1, -1, -1), sparse], dim=2)  # [P, 1, T, C]
        tokens, image = decoder.transformer(
            point_embeddings=tokens,
            image_embeddings=coarse + dense,
            image_positional_embeddings=self._positions,
            attention_similarity=None,
        )
        image = image.transpose(2, 3).reshape(coarse.shape)
        image = decoder.upscale_conv1(image) + (finer[1] if finer else 0)
        image = decoder.activation(decoder.upscale_layer_norm(image))
        image = decoder.activation(decoder.upscale_conv2(image) + (finer[0] if finer else 0))  # [P, C / 8, 4G, 4G]
        first = len(output) - decoder.num_mask_tokens
        filters = [mlp(tokens[:, 0, first + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)]
        logits = torch.einsum("pmc,pchw->pmhw", torch.stack(filters, dim=1), image)
        return Candidates(logits, decoder.iou_prediction_head(tokens[:, 0, first - 1]))

    def _output_tokens(self) -> list[nn.Embedding]:
        return [self.mask_decoder.iou_token, self.mask_decoder.mask_tokens]


class TrackerPredictor(Predictor):
    """SAM3's tracker: its neck, prompt encoder and mask decoder."""

    def __init__(self, decoder: Sam3Decoder) -> None:
        """Take what a decoder has loaded."""
        super().__init__(decoder.tracker.prompt_encoder, decoder.tracker.mask_decoder, decoder)
        self.tracker = decoder.tracker.requires_grad_(False)

    @property
    def neck(self) -> nn.Module:
        """See `Predictor`."""
        neck: nn.Module = self.tracker.vision_encoder.neck
        return neck

    def features(self, embedding: torch.Tensor, neck: nn.Module | None = None) -> list[torch.Tensor]:
        """See `Predictor`."""
        return tracker_features(self.tracker, embedding, neck)

    def forward(self, features: list[torch.Tensor], prompts: Prompts) -> Candidates:
        """See `Predictor`."""
        if prompts.masks is not None:
            prompts = replace(prompts, masks=prompts.masks.clamp(-MASK_LIMIT, MASK_LIMIT))
        return super().forward(features, prompts)

    def _output_tokens(self) -> list[nn.Embedding]:
        return [self.mask_decoder.obj_score_token, *super()._output_tokens()]


def load_predictor(path: Path, device: torch.device) -> Predictor:
    """Open a predictor, float32.

    Args:
        path: SAM's prompt encoder and mask decoder as .onnx, or a SAM3.
        device: where it computes.

    Raises:
        UserError: `path` is neither, or its graph is not SAM's.
    """
    if path.suffix == ".onnx":
        decoder = OnnxDecoder(path)
        parts = build_sam(path, decoder.preprocessing.image_size, decoder.embed_size)
        predictor = Predictor(*parts, decoder)
        _check(predictor, decoder, path)
        return predictor.to(device)
    return TrackerPredictor(Sam3Decoder(path, device)).to(device)


@torch.no_grad()
def _check(predictor: Predictor, decoder: OnnxDecoder, path: Path) -> None:
    """Compare with ONNX Runtime on noise: a box, and a point with a mask.

    Raises:
        UserError: the graph answers otherwise, so it is not SAM's architecture in all its parts.
    """
    side = decoder.preprocessing.image_size
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(1, predictor.embed_dim, *[predictor.embed_size] * 2, generator=generator)
    corners = torch.tensor([[side / 4, side / 3], [side / 2, side / 1.5]])
    mask = torch.randn(1, 1, *[4 * predictor.embed_size] * 2, generator=generator)
    features, first = predictor.features(embedding), torch.zeros(1, dtype=torch.int64)
    box = Prompts(first, torch.zeros(1, 0, 2), torch.zeros(1, 0, dtype=torch.int64), corners.reshape(1, 4))
    point = Prompts(first, corners[None, :1], torch.ones(1, 1, dtype=torch.int64), masks=mask)
    padded = torch.cat([corners[:1], torch.zeros(1, 2)])
    for prompts, points, labels in ((box, corners, [2, 3]), (point, padded, [1, -1])):
        given = None if prompts.masks is None else prompts.masks[0, 0].numpy()
        logits, ious = map(torch.from_numpy, decoder.answer(embedding.numpy(), points.numpy(), labels, given))
        own = predictor(features, prompts)
        # An export gives all candidates or the best of those for ambiguous prompts.
        chosen = [0, *range(1, own.ious.shape[1])] if len(ious) > 1 else [1 + int(own.ious[0, 1:].argmax())]
        expected = own.logits[0, chosen]
        if not (_close(logits, expected) and _close(ious, own.ious[0, chosen])):
            raise UserError(f"{path} does not answer as SAM's architecture with its weights does: {REMEDY}.")


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max())
