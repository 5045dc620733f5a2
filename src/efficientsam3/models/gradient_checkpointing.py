"""Gradient checkpointing that leaves BatchNorm's running statistics right.

Recomputing a stage in the backward pass runs its BatchNorms a second time; their running statistics must move once.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from timm.models import FeatureListNet
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from efficientsam3.runtime.errors import UserError


def enable_gradient_checkpointing(backbone: nn.Module) -> None:
    """Make each stage of a timm feature extractor recompute its activations in the backward pass.

    Raises:
        UserError: the backbone has neither stages to wrap nor timm's own checkpointing.
    """
    if isinstance(backbone, FeatureListNet):
        for stage in backbone.children():
            stage.forward = _checkpointed(stage, stage.forward)
        return
    enable = getattr(backbone, "set_grad_checkpointing", None)
    if enable is None:
        raise UserError(f"--use-checkpoint: {type(backbone).__name__} has no gradient checkpointing; train without it.")
    enable(True)


def _checkpointed(stage: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*inputs: Any) -> Any:
        if not stage.training:
            return forward(*inputs)
        return checkpoint(forward, *inputs, use_reentrant=False, context_fn=partial(_contexts, stage))

    return run


def _contexts(stage: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _frozen_statistics(stage)


@contextmanager
def _frozen_statistics(stage: nn.Module) -> Iterator[None]:
    """Let BatchNorms compute as in the forward pass, saving the same tensors, without moving their statistics."""
    norms = [module for module in stage.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
