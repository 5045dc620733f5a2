"""`efficientsam3 benchmark`: where the time goes on this machine."""

from typing import TYPE_CHECKING

from pydantic import Field

from efficientsam3.benchmark.requests import GpuRequest, LatencyRequest, MemoryRequest
from efficientsam3.commands.arguments import ConfiguredRequest, StepRequest, read_config
from efficientsam3.config.schema import TrainConfig
from efficientsam3.runtime.request import Count

if TYPE_CHECKING:
    from efficientsam3.benchmark.data import DataProfile
    from efficientsam3.benchmark.steps import StepProfile


class DataRequest(ConfiguredRequest):
    """The training whose reading to time."""

    images: Count = Field(64, description="how many images to read")


class StepsRequest(StepRequest):
    """The training whose steps to time."""

    steps: Count = Field(10, description="how many steps to measure")
    warm_up: Count = Field(3, description="steps before those")


def _data(request: DataRequest) -> None:
    """Time each stage of reading images and records, and the DataLoader, of a training."""
    config = read_config(TrainConfig, request)

    from efficientsam3.benchmark.data import profile_data
    from efficientsam3.runtime.device import describe_machine
    from efficientsam3.runtime.distributed import process_group
    from efficientsam3.train.plan import plan_training

    plan = plan_training(config)
    if request.dry_run is not None:
        return
    with process_group(config.DEVICE) as process:
        _print_data(profile_data(plan, process, request.images))
    print(describe_machine())


def _print_data(profile: "DataProfile") -> None:
    from rich.table import Table

    from efficientsam3.runtime.console import Console

    title = f"{profile.images} images, median {profile.megapixels:.1f} MP"
    table = Table("stage", "ms an image", "CPU ms", "share", title=title)
    total = sum(profile.cpu_milliseconds.values())
    for stage, cpu in profile.cpu_milliseconds.items():
        table.add_row(stage, f"{profile.milliseconds[stage]:.2f}", f"{cpu:.2f}", f"{100 * cpu / total:.0f} %")
    Console().print(table)
    print(f"One core: {profile.core_rate:.1f} images/s. DataLoader, {profile.workers} workers: ", end="")
    print(f"{profile.loader_rate:.1f} images/s")


def _train(request: StepsRequest) -> None:
    """Time each stage of a training's step, without writing anything."""
    config = read_config(TrainConfig, request)

    from efficientsam3.benchmark.steps import profile_steps
    from efficientsam3.runtime.device import describe_machine
    from efficientsam3.runtime.distributed import process_group
    from efficientsam3.train.plan import plan_training

    # No checkpoint is looked for: the steps are those of a beginning.
    plan = plan_training(config, cache=False)
    if request.dry_run is not None:
        return
    with process_group(config.DEVICE) as process:
        profile = profile_steps(plan, process, request.steps, request.warm_up)
    if process.is_main:
        _print_steps(profile)
        print("At the same time, workers and threads prepare the data:")
        _print_data(profile.data)
        print(f"{describe_machine()}, {process.world_size} processes on {process.device.type}")


def _print_steps(profile: "StepProfile") -> None:
    from rich.table import Table

    from efficientsam3.runtime.console import Console

    whole = profile.step_milliseconds
    title = f"{profile.steps} steps of {profile.images / profile.steps:g} images"
    table = Table("stage", "ms a step", "share", "CPU ms", title=title)
    for stage, cost in profile.stages.items():
        share = "in parallel" if stage in profile.overlapping else f"{100 * cost.milliseconds / whole:.1f} %"
        table.add_row(stage, f"{cost.milliseconds:.1f}", share, f"{cost.cpu_milliseconds:.1f}")
    table.add_row("the rest", f"{profile.rest:.1f}", f"{100 * profile.rest / whole:.1f} %", "", end_section=True)
    table.add_row("step", f"{whole:.1f}", "100 %", f"{profile.cpu_milliseconds:.1f}")
    Console().print(table)
    peak = "" if profile.peak_memory is None else f", peak memory {profile.peak_memory / 1e9:.2f} GB"
    print(f"{profile.rate:.2f} images/s{peak}")


def _student(request: LatencyRequest) -> None:
    """Time a student's forward pass in several ways."""
    import torch

    from efficientsam3.benchmark.latency import measure_students
    from efficientsam3.benchmark.latency_tables import latency_table
    from efficientsam3.runtime.console import Console
    from efficientsam3.runtime.device import describe_machine, select_device

    device = select_device(request.device)
    if request.threads:
        torch.set_num_threads(request.threads)
    latencies = measure_students(request.student, request.head, request.way, device, request.rounds)
    Console(width=180).print(latency_table(latencies, request.rounds))
    print(f"{describe_machine()}, {device}, {torch.get_num_threads()} threads")


def _gpu(request: GpuRequest) -> None:
    """Measure SAM3's trunk, embedding and training on one GPU, with random weights and made-up images."""
    from efficientsam3.benchmark.gpu import measure_gpu
    from efficientsam3.benchmark.gpu_device import find_device
    from efficientsam3.benchmark.gpu_tables import gpu_json, gpu_table
    from efficientsam3.benchmark.parameters import select_students
    from efficientsam3.runtime.console import Console
    from efficientsam3.runtime.own_files import check_files, write_own_text

    whole = "a benchmark"
    if request.json_file is not None:
        check_files([request.json_file], whole, request.overwrite)
    device, students = find_device(request.device, request.small), select_students(request.student)
    report = measure_gpu(device, students, request.batch_size, request.seconds, request.small)
    Console(width=180).print(gpu_table(report))
    if request.json_file is not None:
        write_own_text(request.json_file, gpu_json(report), whole, request.overwrite)


def _memory(request: MemoryRequest) -> None:
    """Count the memory that training a student takes on a GPU, without one."""
    from efficientsam3.benchmark.parameters import select_students
    from efficientsam3.benchmark.training_memory import count_training_memory, memory_table
    from efficientsam3.models.student import StudentArchitecture
    from efficientsam3.models.students import backbone_of
    from efficientsam3.runtime.console import Console

    pairs = [(name, head) for name in select_students(request.student) for head in request.head]
    memories = {
        (name, head): count_training_memory(StudentArchitecture(backbone_of(name), head=head)) for name, head in pairs
    }
    Console(width=120).print(memory_table(memories, request.batch_size))


ACTIONS = {
    "data": (DataRequest, _data),
    "train": (StepsRequest, _train),
    "student": (LatencyRequest, _student),
    "memory": (MemoryRequest, _memory),
    "gpu": (GpuRequest, _gpu),
}
