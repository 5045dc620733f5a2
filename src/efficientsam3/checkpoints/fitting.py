"""Whether tensors are those that a module takes: their names, shapes and kinds of numbers, and that they are finite."""

from collections.abc import Mapping
from pathlib import Path

import torch

from efficientsam3.runtime.errors import UserError

Layout = tuple[str, tuple[int, ...]]  # "floating-point", "complex" or "integer", and the shape


def layouts(tensors: Mapping[str, torch.Tensor]) -> dict[str, Layout]:
    """Kind of number and shape of each tensor; of a module's, `layouts(module.state_dict())`."""
    return {key: (_kind(value), tuple(value.shape)) for key, value in tensors.items()}


def _kind(tensor: torch.Tensor) -> str:
    if tensor.is_floating_point():
        return "floating-point"
    return "complex" if tensor.is_complex() else "integer"


def differences(found: Mapping[str, Layout], expected: Mapping[str, Layout]) -> str:
    """What distinguishes two sets of tensors, in words, naming one example of each kind; empty when nothing does."""
    parts = []
    for what, keys in (
        ("missing", [key for key in expected if key not in found]),
        ("unexpected", [key for key in found if key not in expected]),
    ):
        if keys:
            parts.append(f"{len(keys)} {what}, such as {keys[0]}")
    for what, place in (("with other numbers", 0), ("of another shape", 1)):
        keys = [key for key in found if key in expected and found[key][place] != expected[key][place]]
        if keys:
            key = keys[0]
            parts.append(f"{len(keys)} {what}, such as {key} {found[key][place]} instead of {expected[key][place]}")
    return "; ".join(parts)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor has no NaN and no infinity; one without floating-point numbers has none.

    On a CPU by its extremes, which NaN becomes: 0.02 s for 100 MB, where `torch.isfinite` takes 25 times as long.
    """
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    if tensor.device.type != "cpu":
        return bool(tensor.isfinite().all())
    return all(bool(torch.isfinite(value)) for value in torch.aminmax(tensor))


def check_finite(tensors: Mapping[str, torch.Tensor], origin: Path) -> None:
    """Refuse NaN and infinities.

    Raises:
        UserError: a tensor has a value that is not finite; it is named.
    """
    for key, value in tensors.items():
        if not is_finite(value):
            raise UserError(
                f"{key} in {origin} has values that are not finite: give an unchanged checkpoint, or an older one if "
                "its training diverged."
            )
