"""Where a step's time goes: what is counted, not how long it took."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from efficientsam3.benchmark.steps import profile_steps
from efficientsam3.config.schema import TrainConfig
from efficientsam3.runtime.distributed import Process
from efficientsam3.runtime.errors import UserError
from efficientsam3.train.loop import Trainer
from efficientsam3.train.objective import Losses
from efficientsam3.train.plan import plan_training
from efficientsam3.train.run import train
from efficientsam3.train.stages import STAGES

MakeTraining = Callable[..., TrainConfig]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_stages_are_all_there_and_are_nearly_the_whole_step(
    make_training: MakeTraining, one_process: Process, tmp_path: Path, accumulation: int
) -> None:
    config = make_training("TRAIN.EMA", "0.9", "TRAIN.ACCUMULATION_STEPS", str(accumulation))
    profile = profile_steps(plan_training(config, cache=False), one_process, steps=4, warm_up=1)
    assert tuple(profile.stages) == STAGES
    assert min(cost.milliseconds for cost in profile.stages.values()) > 0
    # Six images an epoch: steps of 2 images, or of 4 and then of the remaining 2.
    assert (profile.steps, profile.images) == (4, 8 if accumulation == 1 else 2 + 4 + 2 + 4)
    assert profile.rate == pytest.approx(profile.images / profile.seconds)
    whole = sum(cost.milliseconds for cost in profile.stages.values())
    assert profile.rest == pytest.approx(profile.step_milliseconds - whole)
    assert 0.5 * profile.step_milliseconds < whole <= profile.step_milliseconds
    assert 0 < sum(cost.cpu_milliseconds for cost in profile.stages.values()) <= profile.cpu_milliseconds
    assert profile.data.images == 6
    assert not (tmp_path / "student").exists()


def test_the_steps_are_those_of_a_training(
    make_training: MakeTraining, one_process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, losses = Trainer._take_step, list[float]()

    def spy(trainer: Trainer, group: object) -> tuple[Losses, torch.Tensor]:
        found, norm = step(trainer, group)  # type: ignore[arg-type]
        losses.append(found["loss"].item())
        return found, norm

    monkeypatch.setattr(Trainer, "_take_step", spy)
    config = make_training("TRAIN.EPOCHS", "2")
    profile_steps(plan_training(config, cache=False), one_process, steps=3, warm_up=3)
    profiled = losses.copy()
    losses.clear()
    train(config, one_process)
    assert math.isfinite(sum(losses))
    assert profiled[:3] == losses[:3]  # then the training validates, and the profile continues
    assert len(profiled) == len(losses) == 6


def test_the_teacher_in_the_loop_is_a_stage_and_its_cache_is_left_alone(
    make_training: MakeTraining, one_process: Process, tiny_sam3_path: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    online = ["DISTILL.ONLINE", "true", "TEACHER.RESUME", str(tiny_sam3_path), "DISTILL.ONLINE_CACHE", str(cache)]
    config = make_training(*online, online=True)
    profile = profile_steps(plan_training(config, cache=False), one_process, steps=1, warm_up=0)
    assert profile.stages["targets"].milliseconds > 0
    assert "read record" not in profile.data.milliseconds
    assert not cache.exists()


def test_no_steps_are_refused(make_training: MakeTraining, one_process: Process) -> None:
    with pytest.raises(UserError, match="0 steps after 3"):
        profile_steps(plan_training(make_training()), one_process, steps=0)


def test_pytorchs_profiler_knows_the_stages(make_training: MakeTraining, one_process: Process) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        train(make_training("TRAIN.EPOCHS", "1", "TRAIN.EMA", "0.9"), one_process)
    calls = {event.key: event.count for event in profiler.key_averages()}
    assert calls["optimiser"] == calls["average"] == calls["backward"] == 3
    assert calls["forward"] == calls["loss"] == calls["targets"] == calls["normalise"] == calls["transfer"] == 3 + 2
    assert calls["wait for data"] == 4 + 2  # the last time, training finds that there are no more
