"""`efficientsam3 train`: train a student on stored embeddings."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from efficientsam3.commands.arguments import StepRequest, config_key, read_config
from efficientsam3.config.schema import TrainConfig
from efficientsam3.runtime.request import Argument, FileOrFolder

if TYPE_CHECKING:
    from efficientsam3.runtime.signals import StopRequest


class TrainRequest(StepRequest):
    """The training to run."""

    resume: Annotated[Path | None, Argument("CKPT")] = config_key("MODEL.RESUME")
    decoder: FileOrFolder | None = config_key("DISTILL.MASKS.DECODER")
    allow_config_change: bool = Field(
        False,
        description="continue from a checkpoint of another configuration; without it, the changes are named and "
        "refused",
    )


REQUEST = TrainRequest


def run(request: TrainRequest) -> None:
    """Train."""
    from efficientsam3.runtime.signals import stop_on_signals

    # From the start, so that a signal that arrives while PyTorch is imported is not lost.
    with stop_on_signals() as stop:
        _train(request, stop)


def _train(request: TrainRequest, stop: "StopRequest") -> None:
    # Before PyTorch is imported, which takes seconds: a mistyped key is named at once.
    config = read_config(TrainConfig, request)

    from efficientsam3.evaluate.observers import training_observers
    from efficientsam3.runtime.device import select_device
    from efficientsam3.runtime.environment import count_from
    from efficientsam3.runtime.run import check_unused, run_step, write_config
    from efficientsam3.train.plan import plan_training
    from efficientsam3.train.run import check_training, run_training

    if request.dry_run is not None:
        # The launcher says how many processes there will be on all machines together.
        world_size = count_from("WORLD_SIZE", request.dry_run, least=1)
        plan = plan_training(config)
        check_training(plan, world_size, request.allow_config_change)
        training_observers(plan, select_device(config.DEVICE, request.dry_run - 1))
        check_unused(config.output_dir)
        return
    with run_step(config.DEVICE, config.output_dir) as process:
        plan = plan_training(config)
        observers = training_observers(plan, process.device) if process.is_main else None
        admitted = partial(write_config, config, config.output_dir)
        run_training(plan, process, stop, observers, request.allow_config_change, admitted)
