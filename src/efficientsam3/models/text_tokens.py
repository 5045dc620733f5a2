"""Which tokens of a padded phrase count."""

import torch

from efficientsam3.models.text_students import END


def valid_tokens(ids: torch.Tensor) -> torch.Tensor:
    """(B, L) int64 token ids to (B, L) bool: a phrase's tokens up to its end token, whatever stands behind it."""
    ends = (ids == END).long()
    return ends.cumsum(1) - ends == 0  # no end before
