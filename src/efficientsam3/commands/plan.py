"""`efficientsam3 plan`: what embedding the dataset will take, before it is begun."""

from datetime import timedelta

from pydantic import Field

from efficientsam3.commands.arguments import read_config
from efficientsam3.commands.embed import TeacherRequest
from efficientsam3.config.schema import ExportConfig
from efficientsam3.runtime.request import Count


class PlanRequest(TeacherRequest):
    """The embedding to plan."""

    batches: Count = Field(
        20, description="batches to time at most, in 2 minutes at most; before them come those that are read ahead"
    )


REQUEST = PlanRequest


def run(request: PlanRequest) -> None:
    """Measure and print; nothing that is written is kept."""
    config = read_config(ExportConfig, request)

    from rich.table import Table

    from efficientsam3.embed.estimate import estimate_embedding
    from efficientsam3.embed.plan import plan_embedding
    from efficientsam3.runtime.console import Console
    from efficientsam3.runtime.distributed import process_group

    plan = plan_embedding(config)
    if request.dry_run is not None:
        return
    with process_group(config.DEVICE) as process:
        estimate = estimate_embedding(plan, process, request.batches)
    print(f"{estimate.images} images, {estimate.missing} of them to embed; {estimate.free / 1e9:.1f} GB free")
    table = Table("DISTILL.CODEC", "GB", "fits", title="On disk")
    for name, size in estimate.codec_sizes.items():
        chosen = " (chosen)" if name == config.DISTILL.CODEC else ""
        table.add_row(f"{name}{chosen}", f"{size / 1e9:.3f}", "yes" if size <= estimate.free else "no")
    Console().print(table)
    memory = "" if estimate.memory is None else f", {estimate.memory / 1e9:.2f} GB of memory"
    if estimate.rate is None:
        return
    rate = estimate.rate
    print(f"One process here: {rate.images:.2f} images/s at batch {plan.batch_size} on {process.device}{memory}")
    print(f"From image files to the disk, over {rate.batches} batches after {rate.warm_up} to warm up")
    for processes in (1, 8, 64):
        print(f"{processes} such: {timedelta(seconds=round(estimate.seconds(processes)))}")
