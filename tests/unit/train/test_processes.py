"""Trainings on two processes, against one, and from one number of them to another."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from efficientsam3.config.schema import TrainConfig
from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.runtime.distributed import Process
from two_processes import fork_two
from unit.train import record_training

MakeTraining = Callable[..., TrainConfig]


def on_two(config: TrainConfig, folder: Path, stop_after: int = 0) -> dict[str, Any]:
    fork_two(record_training.record_on_two, config.model_dump_json(), folder / "found.pt", stop_after)
    found: dict[str, Any] = torch.load(folder / "found.pt", weights_only=True)
    return found


def on_one(config: TrainConfig, process: Process, stop_after: int = 0) -> dict[str, Any]:
    return record_training.record(config, process, stop_after)


def test_two_processes_and_one_with_accumulation_agree(
    make_training: MakeTraining, one_process: Process, tmp_path: Path, tiny_sam3_path: Path
) -> None:
    opts = ["DATA.BATCH_SIZE", "1", "TRAIN.CLIP_GRAD", "0", "TRAIN.EPOCHS", "2"]
    opts += ["DISTILL.MASKS.DECODER", str(tiny_sam3_path), "DISTILL.MASKS.ROUNDS", "0"]  # clicks follow from roundings
    opts += ["DISTILL.MASKS.NECK", "0.5", "DISTILL.MASKS.LEVELS", "1"]
    two = make_training(*opts, "TAG", "two")
    one = make_training(*opts, "TRAIN.ACCUMULATION_STEPS", "2", "TAG", "one")
    ours, theirs = on_one(one, one_process), on_two(two, tmp_path)
    assert ours["gradients"].keys() == theirs["gradients"].keys() != set()
    for name, gradient in theirs["gradients"].items():
        difference = torch.linalg.vector_norm(ours["gradients"][name] - gradient)
        assert difference <= 1e-4 * torch.linalg.vector_norm(gradient), name
    first, second = (
        [json.loads(line) for line in (config.output_dir / "metrics.jsonl").read_text().splitlines()]
        for config in (one, two)
    )
    assert len(first) == 2
    for left, right in zip(first, second, strict=True):
        assert left == pytest.approx(right, rel=1e-4)


@pytest.mark.parametrize(("before", "window"), [(2, 0), (1, 4)])
def test_another_number_of_processes_sees_the_rest_of_the_epoch_and_nothing_twice(
    make_training: MakeTraining, one_process: Process, tmp_path: Path, before: int, window: int
) -> None:
    config = make_training("DATA.BATCH_SIZE", "1", "TRAIN.EPOCHS", "1", "DISTILL.READ_WINDOW", str(window))
    if before == 2:
        seen = on_two(config, tmp_path, stop_after=1)  # votes are counted while the next step is computed
        rest = on_one(config, one_process)
    else:
        seen = on_one(config, one_process, stop_after=3)
        rest = on_two(config, tmp_path)
    counts = [sum(map(len, found["images"])) for found in (seen, rest)]
    assert counts == ([4, 2] if before == 2 else [3, 3])
    everything = [image_id for found in (seen, rest) for images in found["images"] for image_id in images]
    assert len(set(everything)) == len(everything) == 6
    line = json.loads((config.output_dir / "metrics.jsonl").read_text())
    assert line["step"] == (2 + 2 if before == 2 else 3 + 2)


def test_weights_of_a_channels_last_student_have_the_strides_that_cudnn_gives_their_gradients() -> None:
    """1 x 1 convolutions can be laid out by either name; where names differ, DDP warns, see pytorch/pytorch#157862."""
    student = Student(StudentArchitecture("efficientvit_b0", 8, 16, 64))
    student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  as `_build_trainer` does
    weights = [parameter for parameter in student.parameters() if parameter.ndim == 4]
    assert any(weight.shape[2:] == (1, 1) for weight in weights)
    for weight in weights:
        assert weight.stride() == torch.empty(weight.shape, memory_format=torch.channels_last).stride()
