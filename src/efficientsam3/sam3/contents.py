"""A SAM3 or EfficientSAM3 on disk, native or Hugging Face, in one form: a config and tensors under facebook's keys."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from transformers import PreTrainedConfig, Sam3VideoConfig

from efficientsam3.checkpoints.reading import read_tensors
from efficientsam3.checkpoints.sam3 import read_hf_config, trunk_config
from efficientsam3.checkpoints.sam3_config import video_config
from efficientsam3.checkpoints.sam3_convert import convert
from efficientsam3.checkpoints.sam3_keys import HF_STUDENT_PREFIX, HF_TRUNK_PREFIX, STUDENT_PREFIX
from efficientsam3.checkpoints.sam3_tensors import TRUNK_PREFIX
from efficientsam3.checkpoints.student_keys import is_fused
from efficientsam3.data.preprocess import Preprocessing, sam3_preprocessing
from efficientsam3.models.heads import identify_head
from efficientsam3.models.hf_config import EfficientSam3StudentConfig
from efficientsam3.models.student import StudentArchitecture
from efficientsam3.models.student_files import identify_backbone, to_timm_layout
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.parts import VISUAL_PROMPT_KEY

Tensors = dict[str, torch.Tensor]
# Where config.json and `<output>.json` keep what EfficientSAM3 knows beyond the weights.
METADATA_KEY = "efficientsam3"
_PREFIXES = ("detector_model.", "tracker_model.", "tracker_neck.")


@dataclass(frozen=True)
class Contents:
    """A whole model, its tensors still on disk."""

    path: Path
    config: Sam3VideoConfig
    tensors: Tensors  # under detector_model., tracker_model., tracker_neck.
    preprocessing: Preprocessing
    visual_prompt: torch.Tensor | None = None  # (3, width), in a model that was merged without its text encoder
    native: Tensors | None = None  # the same under sam3.pt's keys, for a plain native SAM3

    def has(self, prefix: str) -> bool:
        """Whether there are tensors under a prefix."""
        return any(key.startswith(prefix) for key in self.tensors)


def metadata_path(path: Path) -> Path:
    """The file beside a native file that holds its metadata."""
    return path.with_name(path.name + ".json")


def read_contents(path: Path) -> Contents:
    """Read a native SAM3 or EfficientSAM3, or a Hugging Face directory of either.

    Raises:
        UserError: `path` is neither of these, or is broken.
    """
    if path.is_dir():
        return _read_directory(path)
    tensors = read_tensors(path)
    if any(key.startswith(STUDENT_PREFIX) for key in tensors):
        return _read_merged(path, tensors)
    backbone = trunk_config(tensors)
    preprocessing = sam3_preprocessing(backbone.image_size)
    return Contents(path, video_config(tensors, backbone), convert(tensors), preprocessing, native=tensors)


def _read_merged(path: Path, tensors: Tensors) -> Contents:
    student = {key.removeprefix(STUDENT_PREFIX): tensors.pop(key) for key in list(tensors) if _in_trunk(key)}
    visual_prompt = tensors.pop(VISUAL_PROMPT_KEY, None)
    metadata = _read_metadata(path)
    described = metadata.get("architecture") or {}
    backbone = described.get("backbone") or identify_backbone(student)
    if backbone is None:
        raise UserError(
            f"{path} holds a student of unknown architecture: put its {metadata_path(path).name} beside it again."
        )
    seen = {"backbone": backbone, "head": identify_head(student), "fused": is_fused(student)}
    architecture = _parse(path, StudentArchitecture, {**seen, **described})
    config = student_config(architecture)
    converted = convert(tensors)
    for key, value in to_timm_layout(student, backbone).items():
        converted[HF_STUDENT_PREFIX + key] = value
    preprocessing = _preprocessing(path, metadata, config)
    return Contents(path, video_config(tensors, config), converted, preprocessing, visual_prompt)


def _in_trunk(key: str) -> bool:
    if key.startswith(TRUNK_PREFIX) and not key.startswith(STUDENT_PREFIX):
        raise UserError(
            f"The model holds both a student and SAM3's own trunk ({key}): merge again without --replace-prefix."
        )
    return key.startswith(STUDENT_PREFIX)


def student_config(architecture: StudentArchitecture) -> EfficientSam3StudentConfig:
    """The Hugging Face config of a student."""
    return EfficientSam3StudentConfig(
        backbone=architecture.backbone,
        hidden_size=architecture.embed_dim,
        patch_size=architecture.image_size // architecture.embed_size,
        image_size=architecture.image_size,
        head=architecture.head,
        fused=architecture.fused,
    )


def _read_metadata(path: Path) -> dict[str, Any]:
    """The metadata beside a native file; empty where there is none, as with files that another program merged."""
    beside = metadata_path(path)
    if not beside.is_file():
        return {}
    try:
        metadata = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{beside} cannot be read as JSON ({error}): remove it, or merge again.") from error
    if not isinstance(metadata, dict) or metadata.get("bytes", path.stat().st_size) != path.stat().st_size:
        raise UserError(f"{beside} does not describe {path.name}, whose size differs: merge again.")
    return metadata


def _preprocessing(path: Path, metadata: dict[str, Any], backbone: PreTrainedConfig) -> Preprocessing:
    default = sam3_preprocessing(backbone.image_size)
    given = metadata.get("preprocessing")
    return default if given is None else _parse(path, Preprocessing, given)


def _parse(path: Path, kind: Any, values: Any) -> Any:
    try:
        return kind(**values)
    except (TypeError, ValidationError) as error:
        raise UserError(f"The metadata of {path} is not understood ({error}): merge again.") from error


def _read_directory(directory: Path) -> Contents:
    raw = read_hf_config(directory)
    if not {"detector_config", "tracker_config"} <= raw.keys():
        raise UserError(
            f"{directory / 'config.json'} is not in facebook/sam3's layout (a detector_config and a tracker_config): "
            "give facebook/sam3 itself, or a directory that merge wrote."
        )
    metadata = raw.pop(METADATA_KEY, None) or {}
    config = Sam3VideoConfig.from_dict(raw)
    tensors = {key: value for key, value in read_tensors(directory).items() if key.startswith(_PREFIXES)}
    if not any(key.startswith(HF_TRUNK_PREFIX) for key in tensors):
        raise UserError(f"Folder {directory} holds no image encoder: give a whole SAM3 directory.")
    backbone = config.detector_config.vision_config.backbone_config
    return Contents(directory, config, tensors, _preprocessing(directory, metadata, backbone))
