"""Students of SAM3's text encoder: transformers' `Sam3LiteTextTextModel` and a linear layer to the features' width."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import nn
from transformers import Sam3LiteTextTextConfig, Sam3LiteTextTextModel

from efficientsam3.models.text_students import VOCABULARY, TextArchitecture
from efficientsam3.models.text_tokens import valid_tokens


def text_config(architecture: TextArchitecture) -> Any:
    """transformers' config of an architecture's encoder."""
    shape = architecture.shape
    # transformers keeps what it does not know, which `sam3.text` reads.
    padding = {} if architecture.padding == "transformers" else {"padding": architecture.padding}
    return Sam3LiteTextTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.width,
        intermediate_size=4 * shape.width,
        projection_dim=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=architecture.context_length,
        use_repmixer_blocks=shape.convolutional,
        **padding,
    )


class TextStudent(nn.Module):
    """From tokens to the features that SAM3's detector takes.

    Its tensors are under `encoder.` and `projector.`, as transformers names those of `text_encoder` and
    `text_projection`.
    """

    def __init__(self, architecture: TextArchitecture) -> None:
        """Build it with random weights."""
        super().__init__()
        self.architecture = architecture
        self.encoder: Any = Sam3LiteTextTextModel(text_config(architecture))
        # The published files have it; nothing uses what it gives, so that it has no gradient.
        self.encoder.projection.requires_grad_(False)
        self.projector = nn.Linear(architecture.shape.width, architecture.embed_dim)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Compute the features.

        Args:
            ids: (B, L) int64, padded as the architecture says.

        Returns:
            (B, D, 1, L) float: a grid of one row, as embeddings of images are grids. What is behind a phrase's end
            means nothing.
        """
        mask = valid_tokens(ids) if self.architecture.padding == "transformers" else None
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state  # [B, L, W]
        features: torch.Tensor = self.projector(hidden)
        return features.transpose(1, 2).unsqueeze(2).contiguous()

    @classmethod
    def from_state(cls, architecture: TextArchitecture, state: Mapping[str, torch.Tensor]) -> Self:
        """One with these weights, float32, in eval mode on the CPU."""
        student = cls(architecture)
        student.load_state_dict(dict(state))
        return student.float().eval()
