"""A small SAM decoder, written after the paper and named as segment-anything names its weights, and its ONNX export."""

import math
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, CELLS, SIDE, HEADS, MASKS = 16, 4, 64, 8, 4  # channels, cells, pixels of the input, heads, candidate masks


class Attention(nn.Module):
    def __init__(self, inner: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(WIDTH, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, WIDTH)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            tensor.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for tensor in (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        )
        weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, width), nn.Linear(width, width), nn.Linear(width, out)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[2](self.layers[1](self.layers[0](x).relu()).relu())


class Feed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin2(self.lin1(x).relu())


class ChannelNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(1, keepdim=True)
        x = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Block(nn.Module):
    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(WIDTH)
        self.cross_attn_token_to_image, self.cross_attn_image_to_token = Attention(WIDTH // 2), Attention(WIDTH // 2)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(WIDTH) for _ in range(4))
        self.mlp = Feed()

    def forward(
        self, tokens: torch.Tensor, image: torch.Tensor, prompt: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        moved = tokens if self.first else tokens + prompt
        attended = self.self_attn(moved, moved, tokens)
        tokens = self.norm1(attended if self.first else tokens + attended)
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + prompt, image + positions, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(image + positions, tokens + prompt, tokens))
        return tokens, image


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(True), Block(False)])
        self.final_attn_token_to_image = Attention(WIDTH // 2)
        self.norm_final_attn = nn.LayerNorm(WIDTH)

    def forward(
        self, prompt: torch.Tensor, image: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = prompt
        for layer in self.layers:
            tokens, image = layer(tokens, image, prompt, positions)
        attended = self.final_attn_token_to_image(tokens + prompt, image + positions, image)
        return self.norm_final_attn(tokens + attended), image


class MaskDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.iou_token, self.mask_tokens = nn.Embedding(1, WIDTH), nn.Embedding(MASKS, WIDTH)
        self.transformer = Transformer()
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(WIDTH, WIDTH // 4, 2, 2),
            ChannelNorm(WIDTH // 4),
            nn.GELU(),
            nn.ConvTranspose2d(WIDTH // 4, WIDTH // 8, 2, 2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList([Mlp(WIDTH, WIDTH // 8) for _ in range(MASKS)])
        self.iou_prediction_head = Mlp(12, MASKS)

    def forward(
        self, image: torch.Tensor, positions: torch.Tensor, sparse: torch.Tensor, dense: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        output = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([output[None].expand(sparse.shape[0], -1, -1), sparse], 1)
        flat = (image + dense).flatten(2).transpose(1, 2)
        tokens, flat = self.transformer(tokens, flat, positions.flatten(2).transpose(1, 2))
        upscaled = self.output_upscaling(flat.transpose(1, 2).unflatten(2, (CELLS, CELLS)))
        filters = torch.stack([mlp(tokens[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], 1)
        masks = (filters @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
        return masks, self.iou_prediction_head(tokens[:, 0])


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, WIDTH // 2))

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        angles = 2 * math.pi * ((2 * points - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([angles.sin(), angles.cos()], -1)


class PromptEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pe_layer = Positions()
        self.point_embeddings = nn.ModuleList([nn.Embedding(1, WIDTH) for _ in range(4)])
        self.not_a_point_embed, self.no_mask_embed = nn.Embedding(1, WIDTH), nn.Embedding(1, WIDTH)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, 2, 2, 2), ChannelNorm(2), nn.GELU(),
            nn.Conv2d(2, 8, 2, 2), ChannelNorm(8), nn.GELU(),
            nn.Conv2d(8, WIDTH, 1),
        )  # fmt: skip


class Sam(nn.Module):
    """Answers as segment-anything's `SamOnnxModel`, with all candidate masks or with the best alone."""

    def __init__(self, single: bool) -> None:
        super().__init__()
        self.single = single
        self.mask_decoder = MaskDecoder()
        self.model = nn.Module()
        self.model.prompt_encoder = PromptEncoder()

    def forward(
        self,
        image_embeddings: torch.Tensor,
        point_coords: torch.Tensor,
        point_labels: torch.Tensor,
        mask_input: torch.Tensor,
        has_mask_input: torch.Tensor,
        orig_im_size: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        encoder = self.model.prompt_encoder
        sparse = encoder.pe_layer((point_coords + 0.5) / SIDE)
        labels = point_labels[..., None]
        sparse = sparse * (labels != -1) + encoder.not_a_point_embed.weight * (labels == -1)
        for label, table in enumerate(encoder.point_embeddings):
            sparse = sparse + table.weight * (labels == label)
        without = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        dense = has_mask_input * encoder.mask_downscaling(mask_input) + (1 - has_mask_input) * without
        middles = (torch.arange(CELLS) + 0.5) / CELLS
        grid = torch.stack(torch.meshgrid(middles, middles, indexing="xy"), -1)
        positions = encoder.pe_layer(grid).permute(2, 0, 1)[None]
        masks, scores = self.mask_decoder(image_embeddings, positions, sparse, dense)
        if self.single:
            bonus = torch.tensor([[1000.0] + [0.0] * (MASKS - 1)])
            best = (scores + (point_coords.shape[1] - 2.5) * bonus).argmax(1)
            masks, scores = masks[torch.arange(1), best][:, None], scores[torch.arange(1), best][:, None]
        shown = F.interpolate(masks, (SIDE, SIDE), mode="bilinear", align_corners=False)
        return shown + 0 * orig_im_size.sum(), scores, masks


def write_sam(path: Path, single: bool = True, activation: nn.Module | None = None) -> None:
    """Export a decoder of random weights, as segment-anything's script does."""
    torch.manual_seed(0)
    sam = Sam(single).eval()
    sam.mask_decoder.output_upscaling[-1] = activation or nn.GELU()
    with torch.no_grad():
        for parameter in sam.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    inputs = {
        "image_embeddings": torch.randn(1, WIDTH, CELLS, CELLS),
        "point_coords": torch.rand(1, 3, 2) * SIDE,
        "point_labels": torch.tensor([[1.0, 2.0, 3.0]]),
        "mask_input": torch.randn(1, 1, 4 * CELLS, 4 * CELLS),
        "has_mask_input": torch.ones(1),
        "orig_im_size": torch.full((2,), float(SIDE)),
    }
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            sam,
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=["masks", "iou_predictions", "low_res_masks"],
            dynamic_axes={"point_coords": {1: "num_points"}, "point_labels": {1: "num_points"}},
            opset_version=17,
            dynamo=False,
        )
