"""A forward pass without computing anything: the shapes it gives and the work it would be."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def trace(model: nn.Module, input_shape: Sequence[int]) -> tuple[Any, int]:
    """Run `model` on an input that has a shape but no values.

    The model may be built on the meta device. Its tensors stand in as fake CPU tensors here, since operations under
    autocast do not run on the meta device before PyTorch 2.7. Attention is taken apart into matrix products, which
    PyTorch's counter counts, unlike a CPU's fused attention.

    Returns:
        the outputs, fake tensors with shapes and dtypes, and the multiply-accumulates of convolutions, matrix products
        and attention: half of `torch.utils.flop_counter`'s floating point operations.
    """
    # Some models keep what they compute (TinyViT its attention biases): that must not outlive this trace.
    model = copy.deepcopy(model)
    with FakeTensorMode(), torch.device("cpu"):
        tensors = [*model.named_parameters(), *model.named_buffers()]
        stand_ins = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in tensors}
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            outputs = functional_call(model, stand_ins, (torch.empty(*input_shape),))
    return outputs, int(counter.get_total_flops()) // 2
