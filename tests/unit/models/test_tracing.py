import torch
from torch import nn

from efficientsam3.models.tracing import trace


class EveryOperation(nn.Module):
    """A convolution, a linear layer, attention and a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1)
        self.linear = nn.Linear(8, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.linear(self.convolution(x).flatten(2).transpose(1, 2))[:, None]  # [B, 1, 16, 16]
        attended = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return attended @ attended.transpose(-1, -2)


def test_every_kind_of_product_counts() -> None:
    tokens = 4 * 4
    expected = tokens * 8 * 3 * 9 + tokens * 8 * 16 + 2 * tokens * tokens * 16 + tokens * tokens * 16
    output, macs = trace(EveryOperation().to("meta"), (1, 3, 8, 8))
    assert macs == expected
    assert output.shape == (1, 1, tokens, tokens)
