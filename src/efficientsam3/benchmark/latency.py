"""The time a student takes for one image, in the ways in which it can be run."""

import copy
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch

from efficientsam3.benchmark.latency_onnx import onnx_forwards
from efficientsam3.benchmark.parameters import StudentSize, measure_student, select_students
from efficientsam3.benchmark.requests import EAGER, WAYS
from efficientsam3.models.fuse import fuse_modules
from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.models.students import backbone_of
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.memory import peak_of
from efficientsam3.runtime.progress import progress_bar

Forward = Callable[[], object]


@dataclass(frozen=True)
class Latency:
    """One student, run in several ways."""

    size: StudentSize
    head: str
    milliseconds: dict[str, float]  # by way: median for one image
    megabytes: dict[str, float]  # by way: the most memory that a forward pass took beyond what was there; where known


def measure_latency(
    name: str, architecture: StudentArchitecture, ways: Iterable[str], device: torch.device, rounds: int
) -> Latency:
    """Time a student with random weights on one image of noise.

    Each round runs every way once, so that what else the machine does meets all of them alike; one round more comes
    first, and counts for the memory alone.

    Args:
        name: of the student, for the table.
        architecture: what to build.
        ways: of `WAYS`; `eager` is always among them.
        device: where to run.
        rounds: how many; the medians are reported.
    """
    forwards = build_ways(architecture, {EAGER, *ways}, device)
    for forward in forwards.values():  # compiles, and chooses algorithms
        _run(forward, device)
    megabytes = {way: peak_of(partial(_run, forward, device), device) for way, forward in forwards.items()}
    seconds: dict[str, list[float]] = {way: [] for way in forwards}
    for _ in range(rounds):
        for way, forward in forwards.items():
            start = time.perf_counter()
            _run(forward, device)
            seconds[way].append(time.perf_counter() - start)
    return Latency(
        measure_student(name, architecture),
        architecture.head,
        {way: 1000 * statistics.median(times) for way, times in seconds.items()},
        {way: peak / 1e6 for way, peak in megabytes.items() if peak is not None},
    )


@torch.inference_mode()
def build_ways(architecture: StudentArchitecture, ways: set[str], device: torch.device) -> dict[str, Forward]:
    """A forward pass for each way, all of one student, in the order of `WAYS`.

    Raises:
        UserError: ONNX Runtime is asked for on another device than the CPU, or not installed.
    """
    size = architecture.image_size
    student = Student(architecture).eval()
    pixels = torch.randn(1, 3, size, size)
    forwards: dict[str, Forward] = {}
    if any(way.startswith("onnx") for way in ways):
        if device.type != "cpu":
            raise UserError(f"ONNX Runtime is timed on the CPU: leave out --way onnx on {device.type}.")
        forwards |= onnx_forwards(student, pixels, "onnx int8" in ways)
    student, pixels = student.to(device), pixels.to(device)
    models: dict[str, torch.nn.Module] = {EAGER: student}
    if any(way.startswith("fused") for way in ways):
        models["fused"] = fuse_modules(student, pixels.shape)
    for way in ways & set(WAYS) - forwards.keys():
        model = models["fused" if way.startswith("fused") else EAGER]
        forwards[way] = _forward(model, way, pixels)
    return {way: forwards[way] for way in WAYS if way in ways}


def _forward(model: torch.nn.Module, way: str, pixels: torch.Tensor) -> Forward:
    if "channels_last" in way:
        model = copy.deepcopy(model).to(memory_format=torch.channels_last)
        pixels = pixels.to(memory_format=torch.channels_last)
    if "compiled" in way:
        # Weights become constants, laid out as the CPU's convolutions like them best.
        model = torch.compile(model, options={"freezing": True})  # type: ignore[assignment]
    return lambda: model(pixels)


@torch.inference_mode()
def _run(forward: Forward, device: torch.device) -> None:
    forward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def measure_students(
    names: Iterable[str], heads: Iterable[str], ways: Iterable[str], device: torch.device, rounds: int
) -> list[Latency]:
    """Time students at SAM3's size, each with each head; arguments as for `measure_latency` and `select_students`.

    Raises:
        UserError: a name is not that of a named student.
    """
    ways, pairs = tuple(ways), [(name, head) for name in select_students(names) for head in heads]
    with progress_bar("students", len(pairs)) as advance:
        found = []
        for name, head in pairs:
            found.append(measure_latency(name, StudentArchitecture(backbone_of(name), head=head), ways, device, rounds))
            advance(1)
    return found
