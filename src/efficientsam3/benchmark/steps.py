"""Where the time of a training's step goes."""

import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from efficientsam3.benchmark.data import DataProfile, profile_data
from efficientsam3.runtime.distributed import Process
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.memory import peak_of
from efficientsam3.train.build import Training, build_training
from efficientsam3.train.plan import TrainPlan
from efficientsam3.train.stages import STAGES, Stage

_DATA_IMAGES = 16


class Cost(NamedTuple):
    """Time spent in one stage or one whole step."""

    milliseconds: float  # wall clock; device time on a GPU
    cpu_milliseconds: float  # of all threads of this process; waiting for a core does not count


@dataclass(frozen=True)
class StepProfile:
    """Mean cost of a step over the measured ones."""

    steps: int  # that were measured
    images: int  # that these took, over all processes
    seconds: float  # that these took
    stages: dict[Stage, Cost]  # a step, in the order of `STAGES`
    cpu_milliseconds: float  # a step
    overlapping: frozenset[Stage]  # stages that overlap with the others on a GPU
    peak_memory: int | None  # bytes, the model's included; None where the system does not report it
    data: DataProfile  # cost of reading the data, image by image, in workers and threads

    @property
    def rate(self) -> float:
        """Images/s, over all processes."""
        return self.images / self.seconds

    @property
    def step_milliseconds(self) -> float:
        """A whole step."""
        return 1000 * self.seconds / self.steps

    @property
    def rest(self) -> float:
        """Milliseconds a step that no stage accounts for."""
        one_by_one = (cost.milliseconds for stage, cost in self.stages.items() if stage not in self.overlapping)
        return self.step_milliseconds - sum(one_by_one)


def profile_steps(plan: TrainPlan, process: Process, steps: int = 10, warm_up: int = 3) -> StepProfile:
    """Take steps as a training would from its beginning, and time their stages; nothing is written.

    Where an epoch is too short, the next one begins.

    Args:
        plan: what would be trained.
        process: this process among its peers, each of which has to call this.
        steps: how many to measure.
        warm_up: how many to take before.

    Raises:
        UserError: see `build_student`; there are no steps to measure; or the gradient is not finite
            ten times in a row.
    """
    if steps < 1 or warm_up < 0:
        raise UserError(f"{steps} steps after {warm_up} to warm up cannot be measured: give at least 1 and 0.")
    measured = list[tuple[int, Cost, dict[Stage, Cost]]]()

    def work() -> None:
        clock = StageClock(process.device)
        with plan.targets.open(process):
            measured.append(_measure(build_training(plan, process, stage=clock), clock, steps, warm_up))

    peak = peak_of(work, process.device)
    [(images, whole, totals)] = measured
    return StepProfile(
        steps,
        images,
        whole.milliseconds / 1000,
        {stage: _mean(totals[stage], steps) for stage in STAGES if stage in totals},
        whole.cpu_milliseconds / steps,
        frozenset({"transfer"} if process.device.type == "cuda" else ()),
        peak,
        profile_data(plan, process, _DATA_IMAGES),
    )


class Moment(NamedTuple):
    """A device's timestamp, and the CPU time of this process at that moment."""

    device: float | torch.cuda.Event  # a GPU's event, else seconds
    cpu: float  # seconds


class StageClock:
    """Times stages; on a GPU by events in its stream, so that the host waits only at the end."""

    def __init__(self, device: torch.device) -> None:
        """Start with nothing measured."""
        self._device = device
        self._spans: list[tuple[Stage, Moment, Moment]] = []

    @contextmanager
    def __call__(self, stage: Stage) -> Iterator[None]:
        """Add what is done within to a stage."""
        start = self.now()
        yield
        self._spans.append((stage, start, self.now()))

    def now(self) -> Moment:
        """Current timestamp."""
        return Moment(self._of_device(), time.process_time())

    def _of_device(self) -> float | torch.cuda.Event:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            return event
        if self._device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    def reset(self) -> None:
        """Forget what was measured."""
        self._spans.clear()

    def totals(self) -> dict[Stage, Cost]:
        """Total cost per stage."""
        totals: dict[Stage, Cost] = {}
        for stage, start, end in self._spans:
            before, cost = totals.get(stage, Cost(0.0, 0.0)), elapsed(start, end)
            totals[stage] = Cost(*map(sum, zip(before, cost, strict=True)))
        return totals


def elapsed(start: Moment, end: Moment) -> Cost:
    """What passed between two moments of one clock; waits for the device to reach the second."""
    cpu = 1000 * (end.cpu - start.cpu)
    if isinstance(start.device, float) or isinstance(end.device, float):
        assert isinstance(start.device, float)
        assert isinstance(end.device, float)
        return Cost(1000 * (end.device - start.device), cpu)
    end.device.synchronize()
    return Cost(start.device.elapsed_time(end.device), cpu)


def _mean(total: Cost, count: int) -> Cost:
    return Cost(total.milliseconds / count, total.cpu_milliseconds / count)


def _measure(training: Training, clock: StageClock, steps: int, warm_up: int) -> tuple[int, Cost, dict[Stage, Cost]]:
    """Returns the measured steps' images, and what the steps and their stages cost, all together."""
    with closing(_steps(training)) as images:
        for _ in range(warm_up):
            next(images)
        clock.reset()
        start = clock.now()
        count = sum(next(images) for _ in range(steps))
        whole = elapsed(start, clock.now())
    return count, whole, clock.totals()


def _steps(training: Training) -> Generator[int, None, None]:
    """Steps without end; yields how many images each took."""
    trainer, epoch = training.trainer, 0
    while True:
        training.sampler.set_epoch(epoch)
        trainer.begin_epoch(epoch)
        seen = 0
        for _ in trainer.train(training.train_loader, len(training.train_loader)):
            yield trainer.position - seen
            seen = trainer.position
        epoch += 1
