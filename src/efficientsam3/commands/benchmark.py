"""`efficientsam3 benchmark`: where the time goes on this machine."""

import argparse
from typing import TYPE_CHECKING

from efficientsam3.commands.arguments import add_config_arguments, add_step_arguments, read_config, read_train_config

if TYPE_CHECKING:
    from efficientsam3.benchmark.data import DataProfile
    from efficientsam3.benchmark.steps import StepProfile

_WAYS = (
    *("eager", "channels_last", "fused", "fused channels_last", "compiled", "fused compiled"),
    *("onnx", "onnx int8"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subjects and their arguments."""
    subjects = parser.add_subparsers(dest="subject", required=True, metavar="SUBJECT")

    def subject(name: str, summary: str, configured: bool = True) -> argparse.ArgumentParser:
        sub = subjects.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if configured:
            add_config_arguments(sub)
        return sub

    data = subject("data", "time each stage of reading pictures and records, and the DataLoader, of a training")
    data.add_argument("--images", type=int, default=64, metavar="N", help="how many to read (default: %(default)s)")
    train = subject("train", "time each stage of a training's step, without writing anything")
    add_step_arguments(train)
    train.add_argument("--steps", type=int, default=10, metavar="N", help="how many to measure (default: %(default)s)")
    train.add_argument("--warm-up", type=int, default=3, metavar="N", help="steps before those (default: %(default)s)")
    _add_student_arguments(subject("student", "time a student's forward pass in several ways", configured=False))


def _add_student_arguments(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument
    flag("--student", nargs="+", default=["all"], metavar="NAME", help="as for `efficientsam3 compare` (default: all)")
    flag("--head", nargs="+", choices=("published", "fpn"), default=["published", "fpn"], help="default: both")
    flag(
        "--way",
        nargs="+",
        choices=_WAYS,
        default=[way for way in _WAYS if not ("compiled" in way or "onnx" in way)],
        help="default: all of PyTorch's but the compiled ones, which take minutes to compile; onnx and onnx int8 (CPU "
        "alone) are what export-onnx writes",
    )
    flag("--rounds", type=int, default=5, metavar="N", help="each way once a round (default: %(default)s)")
    flag("--threads", type=int, default=0, metavar="N", help="of PyTorch; 0: as many as it takes (the default)")
    flag("--device", choices=("auto", "cpu", "mps", "cuda"), default="auto", help="where to compute (default: auto)")


def run(args: argparse.Namespace) -> None:
    """Measure one subject and print it."""
    {"data": _data, "train": _train, "student": _student}[args.subject](args)


def _data(args: argparse.Namespace) -> None:
    from efficientsam3.config.schema import TrainConfig

    config = read_config(TrainConfig, args)

    from efficientsam3.benchmark.data import profile_data
    from efficientsam3.runtime.device import describe_machine
    from efficientsam3.runtime.distributed import process_group
    from efficientsam3.train.plan import plan_training

    plan = plan_training(config)
    if args.dry_run is not None:
        return
    with process_group(config.DEVICE) as process:
        _print_data(profile_data(plan, process, args.images))
    print(describe_machine())


def _print_data(profile: "DataProfile") -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{profile.images} images, median {profile.megapixels:.1f} MP"
    table = Table("stage", "ms an image", "CPU ms", "share", title=title)
    total = sum(profile.cpu_milliseconds.values())
    for stage, cpu in profile.cpu_milliseconds.items():
        table.add_row(stage, f"{profile.milliseconds[stage]:.2f}", f"{cpu:.2f}", f"{100 * cpu / total:.0f} %")
    Console().print(table)
    print(f"One core: {profile.core_rate:.1f} images/s. DataLoader, {profile.workers} workers: ", end="")
    print(f"{profile.loader_rate:.1f} images/s")


def _train(args: argparse.Namespace) -> None:
    config = read_train_config(args)

    from efficientsam3.benchmark.steps import profile_steps
    from efficientsam3.runtime.device import describe_machine
    from efficientsam3.runtime.distributed import process_group
    from efficientsam3.train.plan import plan_training

    if args.dry_run is not None:
        plan_training(config)  # no checkpoint is looked for: the steps are those of a beginning
        return
    with process_group(config.DEVICE) as process:
        profile = profile_steps(config, process, args.steps, args.warm_up)
    if process.is_main:
        _print_steps(profile)
        print("What is done for the data meanwhile, by workers and threads:")
        _print_data(profile.data)
        print(f"{describe_machine()}, {process.world_size} processes on {process.device.type}")


def _print_steps(profile: "StepProfile") -> None:
    from rich.console import Console
    from rich.table import Table

    whole = profile.step_milliseconds
    title = f"{profile.steps} steps of {profile.images / profile.steps:g} images"
    table = Table("stage", "ms a step", "share", "CPU ms", title=title)
    for stage, cost in profile.stages.items():
        beside = stage in profile.overlapping
        share = "beside the others" if beside else f"{100 * cost.milliseconds / whole:.1f} %"
        table.add_row(stage, f"{cost.milliseconds:.1f}", share, f"{cost.cpu_milliseconds:.1f}")
    table.add_row("the rest", f"{profile.rest:.1f}", f"{100 * profile.rest / whole:.1f} %", "", end_section=True)
    table.add_row("step", f"{whole:.1f}", "100 %", f"{profile.cpu_milliseconds:.1f}")
    Console().print(table)
    peak = "" if profile.peak_memory is None else f", peak memory {profile.peak_memory / 1e9:.2f} GB"
    print(f"{profile.rate:.2f} images/s{peak}")


def _student(args: argparse.Namespace) -> None:
    import torch
    from rich.console import Console

    from efficientsam3.benchmark.latency import measure_students
    from efficientsam3.benchmark.latency_tables import latency_table
    from efficientsam3.runtime.device import describe_machine, select_device

    device = select_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    latencies = measure_students(args.student, args.head, args.way, device, args.rounds)
    Console(width=180).print(latency_table(latencies, args.rounds))
    print(f"{describe_machine()}, {device}, {torch.get_num_threads()} threads")
