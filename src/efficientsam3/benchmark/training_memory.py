"""How much memory training a student takes, counted without a GPU: no value is computed."""

from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.runtime.tables import plain_table
from efficientsam3.train.objective import FeatureObjective

_CARDS = (24, 40, 80)  # GB
# What is not counted: temporaries of the backward pass, workspaces of convolutions, batches copied ahead, gaps.
_UNCOUNTED = 0.15  # share of the card left to it
_STATE = 4 * 4  # bytes a parameter: float32 weight, gradient and AdamW's two moments
_BATCH = 2


@dataclass(frozen=True)
class TrainingMemory:
    """What a training keeps in memory between forward and backward pass."""

    state: int  # bytes of weights, gradients and moments
    image: int  # bytes of what the backward pass needs of one image

    def total(self, batch: int) -> int:
        """Bytes at a batch size."""
        return self.state + batch * self.image

    def largest_batch(self, gigabytes: float) -> int:
        """The largest power of two that fits a card, with room for what is not counted; 0 where none does."""
        images = int((1e9 * gigabytes * (1 - _UNCOUNTED) - self.state) // self.image)
        return 1 << images.bit_length() - 1 if images > 0 else 0


def count_training_memory(architecture: StudentArchitecture, dtype: torch.dtype = torch.bfloat16) -> TrainingMemory:
    """Count what autograd saves of the forward pass and of the loss, whose terms are the two that every training has.

    PyTorch's stand-ins for tensors have shapes and dtypes but no values. They run as on a CPU, whose mixed precision
    keeps a few operations in another precision than a GPU's; attention is fused as on a GPU.

    Args:
        architecture: of the student.
        dtype: of mixed precision.
    """
    with torch.device("meta"):
        student = Student(architecture).train()
    size, grid = architecture.image_size, architecture.embed_size
    saved: dict[int, torch.UntypedStorage] = {}  # held, so that no other takes its place

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    with FakeTensorMode(), torch.device("cpu"):
        stand_ins = {
            name: _stand_in(tensor) for name, tensor in [*student.named_parameters(), *student.named_buffers()]
        }
        pixels = torch.empty(_BATCH, 3, size, size)
        targets = torch.empty(_BATCH, architecture.embed_dim, grid, grid)
        valid, weights = torch.empty(_BATCH, grid, grid, dtype=torch.bool), torch.empty(_BATCH)
        with saved_tensors_hooks(note, lambda tensor: tensor):
            with torch.autocast("cpu", dtype), _FusedAttention():
                embeddings = functional_call(student, stand_ins, (pixels,))
            FeatureObjective({"mse": 1.0, "cosine": 1.0})(embeddings, targets, valid, weights)
        for tensor in stand_ins.values():
            saved.pop(tensor.untyped_storage()._cdata, None)
        kept = sum(storage.nbytes() for storage in saved.values())
    parameters = sum(parameter.numel() for parameter in student.parameters())
    return TrainingMemory(_STATE * parameters, kept // _BATCH)


class _FusedAttention(TorchFunctionMode):
    """Attention by a kernel that does not keep the matrix of weights, like that of GPUs; CPUs have none for a bias."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value, mask = _attention_inputs(*args, **(kwargs or {}))
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return fused(query, key, value, attn_mask=None if mask is None else mask.detach().to(query.dtype))[0]


def _attention_inputs(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None, **_: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    return query, key, value, attn_mask


def _stand_in(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=isinstance(tensor, nn.Parameter))


def memory_table(memories: dict[tuple[str, str], TrainingMemory], batch: int) -> Table:
    """One row for each student and head: gigabytes at a batch size, and the batch that fits each size of card."""
    table = plain_table(
        "Memory of a training, counted, not measured",
        ["student", "head", f"GB at batch {batch}", *(f"batch in\n{size} GB" for size in _CARDS)],
        "Weights, gradients, AdamW's moments, and what the backward pass needs, in mixed precision. Batches leave "
        f"{100 * _UNCOUNTED:.0f} % of the card to temporaries, workspaces and batches copied ahead.",
    )
    for (name, head), memory in memories.items():
        batches = [str(memory.largest_batch(size)) for size in _CARDS]
        table.add_row(name, head, f"{memory.total(batch) / 1e9:.1f}", *batches)
    return table
