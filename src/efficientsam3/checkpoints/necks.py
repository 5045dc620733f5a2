"""Necks of SAM3 that were trained with a student: their weights, and what they were before."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict

from efficientsam3.checkpoints.fitting import check_finite
from efficientsam3.checkpoints.reading import StateDict, check_tensors, load_pickled
from efficientsam3.checkpoints.writing import digest_tensor
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.json_files import parse

NeckName = Literal["detector", "tracker"]
NECK_PREFIXES: dict[NeckName, str] = {
    "detector": "detector_model.vision_encoder.neck.",
    "tracker": "tracker_neck.",
}  # under facebook's keys
LEVELS_READ = 3  # of the four levels of a neck; detector and tracker leave the coarsest
_LAYER = re.compile(r"fpn_layers\.(\d+)\.")
_REMEDY = "give an unchanged checkpoint of this version"


@dataclass(frozen=True)
class TrainedNecks:
    """The necks of a student."""

    origins: dict[NeckName, str]  # of each trained neck, `digest_neck` of SAM3's own, which it was trained from
    state: StateDict  # the layers that are trained, under facebook's keys

    def weights(self, name: NeckName) -> StateDict:
        """One neck's, under the keys of transformers' `Sam3VisionNeck`."""
        return under(self.state, name)


class NecksContent(BaseModel):
    """What training checkpoints hold of trained necks, under `necks`."""

    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)

    origins: dict[NeckName, str]
    model: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor] | None = None


def under(tensors: Mapping[str, torch.Tensor], name: NeckName) -> StateDict:
    """The tensors of a neck among those of a SAM3 under facebook's keys, without their prefix."""
    prefix = NECK_PREFIXES[name]
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def is_trained_layer(key: str) -> bool:
    """Whether a tensor of a `Sam3VisionNeck` belongs to a level that is read, and so can be trained."""
    layer = _LAYER.match(key)
    return layer is not None and int(layer[1]) < LEVELS_READ


def digest_neck(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of a whole neck as float32, by the keys of `Sam3VisionNeck`, whatever file and device it is in."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode() + digest_tensor(state[key].detach().float().cpu()))
    return digest.hexdigest()


def read_trained_necks(path: Path) -> TrainedNecks | None:
    """The trained necks of a training checkpoint, averaged where it has averages; None where none were trained.

    Args:
        path: any file of a student; all but training checkpoints have no necks of their own.

    Raises:
        UserError: the file cannot be read, or its necks are not understood.
    """
    if path.is_dir() or path.suffix == ".safetensors":
        return None
    content: Any = load_pickled(path, values=False)
    if not isinstance(content, dict) or content.get("necks") is None:
        return None
    content = load_pickled(path)
    found = parse(NecksContent, content["necks"], f"necks in checkpoint {path}", _REMEDY)
    state = found.ema or found.model
    prefixes = tuple(NECK_PREFIXES[name] for name in found.origins)
    stray = next((key for key in state if not key.startswith(prefixes)), None)
    if stray is not None or len(state) == 0:
        raise UserError(f"necks in checkpoint {path} are not those of a detector or tracker ({stray}): {_REMEDY}.")
    check_tensors(state, path)
    check_finite(state, path)
    return TrainedNecks(found.origins, state)


def neck_names(names: Iterable[str]) -> list[NeckName]:
    """Those that name a neck, in one order."""
    found = frozenset(names)
    return [name for name in get_args(NeckName) if name in found]
