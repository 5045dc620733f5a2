"""AdamW with weight decay on matrices alone, and a warmed-up cosine schedule."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.optim import param_groups_layer_decay
from torch import nn

_PUBLISHED_BATCH = 512
_MANY_STEPS, _LARGEST_FACTOR = 256, 4.0  # of `steps`
_CONFIGURED = ("weight_decay", "lr_scale")  # of a group of parameters


def scale_learning_rate(rate: float, total_batch: int, steps: int, rule: str) -> float:
    """The learning rate at which a training begins its cosine.

    - `steps`: `rate`, but more where there are few steps, each of which AdamW bounds by the rate: as 1 / sqrt(steps)
      below 256, up to 4 times `rate` at 16 and fewer. From batches of 2, 8 and 32 at equal images, see
      docs/experiments.md.
    - `sqrt`: `rate` is for 512 images a step, and follows the square root of their number (Malladi et al. 2022,
      arXiv:2205.10287).
    - `linear`: likewise in proportion: the published rule, after Goyal et al. 2017 (arXiv:1706.02677), which is made
      for SGD. Both starve AdamW at small batches.
    - `none`: `rate`.

    Args:
        rate: TRAIN.BASE_LR.
        total_batch: images an optimiser step.
        steps: of the whole training.
        rule: one of these.
    """
    ratio = total_batch / _PUBLISHED_BATCH
    few = min(max(1.0, math.sqrt(_MANY_STEPS / max(1, steps))), _LARGEST_FACTOR)
    return rate * {"steps": few, "sqrt": math.sqrt(ratio), "linear": ratio, "none": 1.0}[rule]


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int, floor: float) -> float:
    """Factor on the base rate at an optimiser step: linear warm-up, then a cosine from 1 to `floor`.

    Args:
        step: 0-based.
        total_steps: steps of the whole run; the last one has (nearly) `floor`.
        warmup_steps: steps until the factor is 1.
        floor: in [0, 1].
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    scaled: Sequence[tuple[nn.Module, float]] = (),
) -> torch.optim.AdamW:
    """AdamW in one fused kernel, which CPU, MPS and CUDA have since PyTorch 2.6; norms and biases, the
    parameters of fewer than two dimensions, do not decay.

    Args:
        model: what is trained; with a `layer_decay`, a student.
        learning_rate: at the first step.
        weight_decay: of matrices.
        layer_decay: factor on the rate from a stage to the one before, which their groups have as `lr_scale`.
        scaled: modules beside the model, each with a factor on the rate, which their groups have as `lr_scale`.
    """
    groups = _groups(model, weight_decay, layer_decay)
    for module, scale in scaled:
        groups += [{**group, "lr_scale": scale} for group in _groups(module, weight_decay)]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def _groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    if layer_decay != 1:
        return list(param_groups_layer_decay(model, weight_decay, layer_decay=layer_decay))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def restore_optimizer(optimizer: torch.optim.AdamW, state: dict[str, Any]) -> None:
    """Load what `state_dict` gave, whatever device it was saved on.

    Moments come with the memory layout of that device's parameters, channels_last on CUDA. The fused kernel goes
    through parameters and moments in memory order: on the CPU it would pair the wrong values without a word, and on
    CUDA it refuses. Weight decay and factors on the learning rate stay as they are configured now.
    """
    configured = [{key: group[key] for key in _CONFIGURED if key in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, values in zip(optimizer.param_groups, configured, strict=True):
        group.update(values)
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                moments[name] = torch.empty_like(parameter).copy_(value)


def apply_if_finite(optimizer: torch.optim.AdamW, bad: torch.Tensor) -> None:
    """Take a fused AdamW's step, or leave parameters and moments as they are where `bad`, a bool scalar, is set."""
    if bad.device.type == "mps":  # PyTorch does not say whether its MPS kernel knows the flag below
        if not bool(bad):
            optimizer.step()
        return
    # What GradScaler hands to a fused optimiser: the kernel itself checks, so the host does not wait for the device.
    optimizer.grad_scale, optimizer.found_inf = None, bad.float()  # type: ignore[attr-defined]
    optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
