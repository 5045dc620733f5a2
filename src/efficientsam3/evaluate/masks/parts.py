"""What an embedding is made of: parts in which one model's embedding can be exchanged for another's.

Each of the three families splits the difference of two embeddings into parts that add up to it, so that exchanging all
parts of one family turns one embedding into the other.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.fft import dctn, idctn
from scipy.ndimage import binary_dilation, binary_erosion

from efficientsam3.data.preprocess import Preprocessing, build_valid_mask

# Wave lengths in cells from which a band begins.
BANDS = {"coarse, waves of 16 cells and more": 16.0, "middle, of 4 to 16": 4.0, "fine, below 4": 0.0}
OUTLINES, INSIDE, BACKGROUND, PADDING = "outlines of objects", "inside of objects", "background", "padding"


@dataclass(frozen=True)
class Statistics:
    """Of a teacher's and a student's embeddings over the cells of many images, for each channel (D,) float64."""

    teacher_mean: torch.Tensor
    teacher_std: torch.Tensor
    student_mean: torch.Tensor
    student_std: torch.Tensor
    error: torch.Tensor  # mean squared difference over the teacher's variance: 1 is what the mean alone would get

    @classmethod
    def of(cls, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> "Statistics":
        """Measure pairs of embeddings (D, cells), the teacher's and the student's."""
        count, sums = 0, torch.zeros(5, 1)
        for teacher, student in pairs:
            t, s = teacher.double(), student.double()
            sums = sums + torch.stack([part.sum(1) for part in (t, t**2, s, s**2, (t - s) ** 2)])
            count += t.shape[1]
        t1, t2, s1, s2, error = sums / count
        t_variance, s_variance = ((square - mean**2).clamp(min=1e-12) for mean, square in ((t1, t2), (s1, s2)))
        return cls(t1, t_variance.sqrt(), s1, s_variance.sqrt(), error / t_variance)

    def rescale(self, embedding: torch.Tensor, to_teacher: bool) -> torch.Tensor:
        """An embedding (1, D, G, G) with the mean and deviation of the teacher's channels, or of the student's."""
        teacher, student = (self.teacher_mean, self.teacher_std), (self.student_mean, self.student_std)
        (mean, std), (new_mean, new_std) = (student, teacher) if to_teacher else (teacher, student)
        standard = (embedding.double() - mean[:, None, None]) / std[:, None, None]
        return (standard * new_std[:, None, None] + new_mean[:, None, None]).float()

    def channel_groups(self, count: int) -> list[list[int]]:
        """Channels in `count` groups of about the same size, those of the largest error first."""
        order = torch.argsort(self.error, descending=True, stable=True)
        return [sorted(group.tolist()) for group in order.tensor_split(count)]


def content_cells(size: tuple[int, int], preprocessing: Preprocessing, grid: int) -> tuple[int, int]:
    """Rows and columns of cells (of `grid` each way) that show an image of (height, width) rather than padding."""
    content = torch.tensor([preprocessing.content_size(*size)])
    valid = build_valid_mask(content, preprocessing.image_size, grid)[0]
    return int(valid[:, 0].sum()), int(valid[0].sum())


def bands(difference: torch.Tensor, content: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Split a difference (1, D, G, G) by spatial frequency, by a cosine transform of the content's cells.

    The padding's cells are 0 in all of them.
    """
    rows, columns = content
    waves = np.asarray(dctn(difference[0, :, :rows, :columns].double().numpy(), axes=(1, 2), norm="ortho"))
    # Cycles per cell of the cosine of index k over n cells: k / 2n.
    frequency = np.hypot(np.arange(rows)[:, None] / (2 * rows), np.arange(columns) / (2 * columns))
    found, above = {}, 0.0
    for name, shortest in BANDS.items():
        below = 1 / shortest if shortest else np.inf
        part = torch.zeros_like(difference)
        chosen = waves * ((frequency >= above) & (frequency < below) if above else frequency < below)
        part[0, :, :rows, :columns] = torch.from_numpy(np.asarray(idctn(chosen, axes=(1, 2), norm="ortho"))).float()
        found[name], above = part, below
    return found


def regions(masks: Iterable[npt.NDArray[np.bool_]], content: tuple[int, int], grid: int) -> dict[str, torch.Tensor]:
    """Cells (G, G) bool of the outlines of an image's objects, within one cell; of their inside; of all else.

    Args:
        masks: (H, W) of the objects.
        content: rows and columns of cells that the image covers.
        grid: cells each way.
    """
    outline, inside = np.zeros((2, grid, grid), dtype=bool)
    shown = outline[: content[0], : content[1]], inside[: content[0], : content[1]]
    for mask in masks:
        covered = _coverage(mask, content)
        whole = covered == 1
        shown[0][binary_dilation((covered > 0) & ~binary_erosion(whole, border_value=1))] = True
        shown[1][whole] = True
    valid = np.zeros((grid, grid), dtype=bool)
    valid[: content[0], : content[1]] = True
    inside &= ~outline
    found = {OUTLINES: outline, INSIDE: inside, BACKGROUND: valid & ~outline & ~inside, PADDING: ~valid}
    return {name: torch.from_numpy(cells) for name, cells in found.items()}


def _coverage(mask: npt.NDArray[np.bool_], content: tuple[int, int]) -> npt.NDArray[np.float64]:
    """The share of each cell that a mask covers."""
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    sums[1:, 1:] = mask.cumsum(0).cumsum(1)
    rows, columns = (
        np.linspace(0, side, cells + 1).round().astype(int) for side, cells in zip(mask.shape, content, strict=True)
    )
    areas = np.maximum(np.diff(rows)[:, None] * np.diff(columns), 1)
    corners = sums[rows][:, columns]
    pixels = corners[1:, 1:] - corners[:-1, 1:] - corners[1:, :-1] + corners[:-1, :-1]
    shares: npt.NDArray[np.float64] = pixels / areas
    return shares
