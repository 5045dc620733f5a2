"""What SAM3's decoders read: the levels of a neck, the student's against the teacher's."""

from collections.abc import Sequence

import torch

from efficientsam3.data.preprocess import build_valid_mask


def compare_levels(
    own: Sequence[torch.Tensor],
    teacher: Sequence[torch.Tensor],
    content_sizes: torch.Tensor,
    image_size: int,
    weights: torch.Tensor,
) -> torch.Tensor:
    """The squared difference of the levels' cells that show the image, as a share of the teacher's sum of squares.

    Args:
        own: (B, C, h, w) of each level, of the student's embedding.
        teacher: the same of the teacher's, without gradients.
        content_sizes: (B, 2) height and width of the images in the input.
        image_size: side of the input.
        weights: (B,) float, 1 for an image and 0 for a stand-in that must not count.

    Returns:
        A scalar, the mean over levels and images; 0 where student and teacher have the same embedding.
    """
    errors = []
    for level, wanted in zip(own, teacher, strict=True):
        valid = build_valid_mask(content_sizes, image_size, wanted.shape[-1])[:, None]
        error, whole = ((part * valid).square().sum((1, 2, 3)) for part in (level - wanted, wanted))
        errors.append(error / whole.clamp(min=torch.finfo(whole.dtype).tiny))
    return (torch.stack(errors).mean(0).float() * weights).sum() / weights.sum().clamp(min=1)
