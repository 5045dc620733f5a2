"""The stages of a training step, named as a profiler shows them."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, get_args

Stage = Literal[
    "wait for data", "transfer", "normalise", "targets", "forward", "loss", "backward", "optimiser", "average"
]
STAGES: tuple[Stage, ...] = get_args(Stage)
# Marks what is done within it as a stage.
Label = Callable[[Stage], AbstractContextManager[Any]]
