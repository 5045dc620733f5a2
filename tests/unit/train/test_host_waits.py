"""What makes the host wait for the GPU in a step of training, counted on stand-ins for CUDA tensors."""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from efficientsam3.config.schema import TrainConfig
from efficientsam3.data import preprocess
from efficientsam3.data.objects import ImageObjects
from efficientsam3.runtime.distributed import Process
from efficientsam3.train import build
from efficientsam3.train.batches import TrainBatch, on_device
from efficientsam3.train.build import TargetMoments
from efficientsam3.train.loop import Group, Trainer
from efficientsam3.train.objective import Losses
from efficientsam3.train.plan import TrainPlan, plan_training

MakeTraining = Callable[..., TrainConfig]
aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
# Each reads a value, or the number of values, back from the device.
READS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default}
COPIES = {aten._to_copy.default, aten.copy_.default}


class CountWaits(TorchDispatchMode):
    """Counts, by name, what reads a CUDA tensor's values, and copies between host and GPU that are waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in READS and args[0].device.type == "cuda":
            self.waits[str(func)] += 1
            return {aten._local_scalar_dense.default: 1.0, aten.equal.default: True}.get(func, args[0].new_empty(1))
        result = func(*args, **kwargs)
        if func in COPIES:
            source = args[0] if func is aten._to_copy.default else args[1]
            blocking = not (kwargs.get("non_blocking") or (func is aten.copy_.default and len(args) > 2 and args[2]))
            if blocking and {source.device.type, result.device.type} == {"cpu", "cuda"}:
                self.waits[f"copy to {result.device.type}"] += 1
        return result


def waits_of_a_step(plan: TrainPlan, autocast: torch.dtype | None) -> Counter[str]:
    """What a step waits for, with its batch's copy to the GPU; what is made once, in the first step, does not count.

    FakeTensorMode has no backward pass on CUDA: gradients are empty, and what autograd itself does is not counted.
    """
    process = Process(0, 1, CUDA, None)
    with ExitStack() as stack:
        for name, value in (
            ("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
            ("torch.cuda.is_bf16_supported", lambda *_, **__: True),
            ("torch.cuda.Stream", lambda device: None),
            ("torch.Generator", lambda device: Mock()),
            ("torch.Tensor.backward", lambda loss: None),
            ("efficientsam3.models.student.Student.to", lambda student, *_, **__: student),
            ("efficientsam3.sam3.predictor.Predictor.to", lambda predictor, *_: _moved(predictor)),
            ("torch.Tensor.pin_memory", lambda tensor: tensor),
        ):
            stack.enter_context(patch(name, value))
        stack.enter_context(patch.object(build, "autocast_dtype", lambda device: autocast))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        trainer = _trainer(plan, process)
        stack.callback(preprocess._moments.cache_clear)
        preprocess._moments.cache_clear()
        for _ in range(2):
            for parameter in trainer.student.parameters():
                parameter.grad = torch.empty_like(parameter)
            batches = on_device(iter([_batch(plan)]), CUDA, None, lambda name: nullcontext())
            with CountWaits() as counted:
                trainer._take_step(Group(batches, 1))
    return counted.waits


def _trainer(plan: TrainPlan, process: Process) -> Trainer:
    with torch.device("meta"):
        student = _moved(build.Student(plan.architecture))
    ignore: Any = lambda *_: None  # noqa: E731
    return build._build_trainer(plan, process, student, {}, TargetMoments(None, None), ignore, build.record_function)


def _moved(module: Any) -> Any:
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            tensors |= {name: _on_cuda(tensor) for name, tensor in tensors.items() if tensor is not None}
    return module


def _on_cuda(tensor: torch.Tensor) -> torch.Tensor:
    layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
    stand_in = torch.empty(tensor.shape, dtype=tensor.dtype, device=CUDA, memory_format=layout)
    return torch.nn.Parameter(stand_in) if isinstance(tensor, torch.nn.Parameter) else stand_in


def _batch(plan: TrainPlan) -> TrainBatch:
    size, count = plan.architecture.image_size, 2
    return TrainBatch(
        image_ids=["a", "b"],
        pixels=torch.empty(count, 3, size, size, dtype=torch.uint8),
        content_sizes=torch.full((count, 2), size),
        seeds=torch.zeros(count, dtype=torch.int32),
        rows=[0, 1],
        broken=[],
        records=torch.empty(count, plan.targets.manifest.record_size, dtype=torch.uint8),
        weights=torch.ones(count),
        objects=[None, ImageObjects((size, size), np.full((1, 4), 9, np.float32), np.full((1, 8, 2), 9, np.float32))],
    )


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_a_step_waits_for_nothing(
    make_training: MakeTraining, precision: torch.dtype | None, tiny_sam3_path: Path
) -> None:
    plan = plan_training(make_training("TRAIN.EMA", "0.9", "DISTILL.MASKS.DECODER", str(tiny_sam3_path)))
    assert waits_of_a_step(plan, precision) == {}


WAITS: dict[str, Callable[[torch.Tensor], object]] = {
    "item": torch.Tensor.item,
    "bool": bool,
    "cpu": torch.Tensor.cpu,
    "if": lambda loss: 1 if loss > 0 else 0,
    "nonzero": torch.Tensor.nonzero,
    "mask": lambda loss: loss[loss > 0],
    "constant": lambda loss: torch.tensor([1.0, 2.0], device=loss.device),
    "to": lambda loss: torch.ones(2).to(loss.device),
    "copy_": lambda loss: loss.detach().copy_(torch.ones(())),
}


def test_waits_that_come_back_are_counted(make_training: MakeTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = Trainer._loss

    def waiting(*arguments: Any) -> Losses:
        losses = compute(*arguments)
        for wait in WAITS.values():
            wait(losses["loss"])
        return losses

    monkeypatch.setattr(Trainer, "_loss", waiting)
    found = waits_of_a_step(plan_training(make_training()), torch.bfloat16)
    assert found.total() == len(WAITS), found
