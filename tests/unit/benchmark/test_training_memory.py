"""The counted memory of a training against what autograd really keeps."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from efficientsam3.benchmark.training_memory import TrainingMemory, count_training_memory
from efficientsam3.cli import main
from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.train.objective import FeatureObjective


@pytest.mark.parametrize(
    ("backbone", "least"),
    # A CPU has no fused attention for TinyViT's bias, and keeps the matrices of attention weights.
    [("efficientvit_b0", 0.99), ("repvit_m0_9", 0.99), ("tiny_vit_5m", 0.8)],
)
def test_what_is_counted_is_what_autograd_keeps(backbone: str, least: float) -> None:
    architecture = StudentArchitecture(backbone, 64, 16, 224)
    student = Student(architecture).train()
    own = {tensor.untyped_storage().data_ptr() for tensor in [*student.parameters(), *student.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = student(torch.randn(2, 3, 224, 224))
        FeatureObjective({"mse": 1.0, "cosine": 1.0})(
            embeddings, torch.randn(2, 64, 16, 16), torch.ones(2, 16, 16, dtype=torch.bool), torch.ones(2)
        )
    memory = count_training_memory(architecture)
    real = sum(storage.nbytes() for storage in kept.values()) / 2
    assert least * real <= memory.image <= (1.01 if least == 0.99 else 0.95) * real
    assert memory.state == 16 * sum(parameter.numel() for parameter in student.parameters())


def test_the_largest_power_of_two_that_leaves_room() -> None:
    memory = TrainingMemory(state=400_000_000, image=1_000_000_000)
    assert memory.total(32) == 32_400_000_000
    assert [memory.largest_batch(size) for size in (1, 2, 24, 40, 80)] == [0, 1, 16, 32, 64]


def test_the_table_says_that_it_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "memory", "--student", "es_ev_s", "--head", "published", "--batch-size", "16"]) == 0
    shown = capsys.readouterr().out
    assert "counted, not measured" in shown
    assert "GB at batch 16" in shown
