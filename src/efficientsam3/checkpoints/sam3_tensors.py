"""Names, shapes and dtypes of the tensors in Meta's sam3.pt: facts about the file, shipped so that none is needed."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

TRUNK_PREFIX = "detector.backbone.vision_backbone.trunk."


@dataclass(frozen=True)
class TensorFact:
    """One tensor of a checkpoint, without its values."""

    shape: tuple[int, ...]
    dtype: str  # torch's name for it: float32, or complex64 for the rotary tables


@cache
def sam3_tensors() -> dict[str, TensorFact]:
    """Every tensor of sam3.pt by its key, in the file's order: 1156 under `detector.`, 309 under `tracker.`."""
    text = files("efficientsam3.checkpoints").joinpath("sam3_tensors.json").read_text(encoding="utf-8")
    return {key: TensorFact(tuple(shape), dtype) for key, (shape, dtype) in json.loads(text).items()}
