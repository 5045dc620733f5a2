"""Fusing a student for inference: no BatchNorm that a convolution could carry, no branches that one could replace."""

import copy
from collections.abc import Callable, Sequence

import torch
from timm.utils.model import reparameterize_model
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from efficientsam3.models.tracing import trace

Pairs = Sequence[tuple[str, str]]


def fuse_modules(model: nn.Module, input_shape: Sequence[int]) -> nn.Module:
    """A copy of `model` in which convolutions have taken in what follows them linearly, see `fuse_in_place`."""
    return fuse_in_place(copy.deepcopy(model), input_shape)


@torch.no_grad()
def fuse_in_place(model: nn.Module, input_shape: Sequence[int], pairs: Pairs | None = None) -> nn.Module:
    """Let the convolutions of a model take in what follows them linearly.

    First timm's re-parameterisation (RepViT's parallel branches become one convolution each), then every BatchNorm
    whose input is a convolution's output and nothing else's. Its activation, where it carries one, stays.

    Args:
        model: in eval mode; on any device, the meta device too, where only the structure is made.
        input_shape: (B, 3, S, S) of an input that it takes.
        pairs: the `linear_pairs` of a model of the same structure; by default they are found by tracing this one.

    Returns:
        the fused model, in eval mode. Its state dict has fewer keys than before.
    """
    assert not model.training, "only running statistics can be fused"
    fused = _reparameterise(model)
    for conv_name, norm_name in _traced_pairs(fused, input_shape) if pairs is None else pairs:
        conv, norm = fused.get_submodule(conv_name), fused.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        _replace(fused, conv_name, fuse_conv_bn_eval(conv, norm))
        _replace(fused, norm_name, _rest(norm))
    return fused.eval()


def linear_pairs(model: nn.Module, input_shape: Sequence[int]) -> Pairs:
    """Names of the convolutions in a re-parameterised model, and of the BatchNorm that alone takes each one's output.

    Args:
        model: see `fuse_in_place`; it is re-parameterised.
        input_shape: see `fuse_in_place`.
    """
    return _traced_pairs(_reparameterise(model), input_shape)


def _reparameterise(model: nn.Module) -> nn.Module:
    with next(model.parameters()).device:  # TinyViT's own fusing makes its convolutions on the default device
        fused: nn.Module = reparameterize_model(model, inplace=True)
    return fused


def _traced_pairs(model: nn.Module, input_shape: Sequence[int]) -> Pairs:
    outputs: dict[int, tuple[str, torch.Tensor]] = {}  # the tensors are kept, or their ids would be given again
    pairs: list[tuple[str, str]] = []

    def after_conv(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, output: torch.Tensor) -> None:
            outputs[id(output)] = (name, output)

        return hook

    def before_norm(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if id(inputs[0]) in outputs:
                pairs.append((outputs[id(inputs[0])][0], name))

        return hook

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(after_conv(name)))
        elif isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(before_norm(name)))
    try:
        trace(model, input_shape)
    finally:
        for handle in handles:
            handle.remove()
    used = [conv for conv, _ in pairs]
    return [(conv, norm) for conv, norm in pairs if used.count(conv) == 1]


def _rest(norm: nn.BatchNorm2d) -> nn.Module:
    """What a BatchNorm does beyond normalising: timm's BatchNormAct2d ends in an activation."""
    activation = getattr(norm, "act", None)
    return nn.Identity() if activation is None else activation


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
