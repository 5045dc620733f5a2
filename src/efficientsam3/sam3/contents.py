"""A SAM3 or EfficientSAM3 on disk, native or Hugging Face, in one form: a config and tensors under facebook's keys."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from transformers import PreTrainedConfig, Sam3LiteTextConfig, Sam3VideoConfig

from efficientsam3.checkpoints.hf_config import parse_hf_config, read_hf_config
from efficientsam3.checkpoints.necks import NECK_PREFIXES, NeckName, TrainedNecks, is_trained_layer, under
from efficientsam3.checkpoints.reading import read_tensors
from efficientsam3.checkpoints.sam3 import trunk_config
from efficientsam3.checkpoints.sam3_config import video_config
from efficientsam3.checkpoints.sam3_convert import convert
from efficientsam3.checkpoints.sam3_keys import HF_STUDENT_PREFIX, HF_TRUNK_PREFIX, STUDENT_PREFIX, TEXT_PREFIX
from efficientsam3.checkpoints.sam3_tensors import TRUNK_PREFIX
from efficientsam3.checkpoints.student_keys import is_fused
from efficientsam3.data.preprocess import Preprocessing, sam3_preprocessing
from efficientsam3.models.heads import identify_head
from efficientsam3.models.hf_config import EfficientSam3StudentConfig
from efficientsam3.models.student import StudentArchitecture
from efficientsam3.models.student_files import identify_backbone, to_timm_layout
from efficientsam3.models.text_student import text_config
from efficientsam3.models.text_students import TextArchitecture
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import require_file, sha256_file
from efficientsam3.runtime.json_files import parse, read_json_object
from efficientsam3.sam3.parts import VISUAL_PROMPT_KEY

Tensors = dict[str, torch.Tensor]
# Where config.json and `<output>.json` keep what EfficientSAM3 knows beyond the weights.
METADATA_KEY = "efficientsam3"
_REMEDY = "merge again, or copy the model and its metadata together"
_HEAD_SIZE = 64  # channels of a head in the published text students
_PREFIXES = ("detector_model.", "tracker_model.", "tracker_neck.")


class _Metadata(BaseModel):
    """What is read of the metadata that `merge` writes."""

    architecture: dict[str, Any] | None = None
    preprocessing: Preprocessing | None = None
    bytes: int | None = None
    sha256: str | dict[str, str] | None = None  # of a native file, or of each weight file of a directory
    trained_necks: dict[NeckName, str] = {}  # see `TrainedNecks.origins`
    text: dict[str, Any] | None = None  # the architecture of a text student


@dataclass(frozen=True)
class Contents:
    """A whole model, its tensors still on disk."""

    path: Path
    config: Sam3VideoConfig
    tensors: Tensors  # under detector_model., tracker_model., tracker_neck.
    preprocessing: Preprocessing
    visual_prompt: torch.Tensor | None = None  # (3, width), in a model that was merged without its text encoder
    native: Tensors | None = None  # the same under sam3.pt's keys, for a plain native SAM3
    trained_necks: dict[NeckName, str] = field(default_factory=dict)  # see `TrainedNecks.origins`
    text: TextArchitecture | None = None  # of the student in the place of SAM3's text encoder

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
    metadata = _read_metadata(path)
    tensors = read_tensors(path, sha256=metadata.sha256 if isinstance(metadata.sha256, str) else None)
    if any(key.startswith(STUDENT_PREFIX) for key in tensors):
        return _read_merged(path, tensors, metadata)
    backbone = trunk_config(tensors)
    preprocessing = sam3_preprocessing(backbone.image_size)
    return Contents(path, video_config(tensors, backbone), convert(tensors), preprocessing, native=tensors)


def _read_merged(path: Path, tensors: Tensors, metadata: _Metadata) -> Contents:
    student = {key.removeprefix(STUDENT_PREFIX): tensors.pop(key) for key in list(tensors) if _in_trunk(key)}
    visual_prompt = tensors.pop(VISUAL_PROMPT_KEY, None)
    described = metadata.architecture or {}
    backbone = described.get("backbone") or identify_backbone(student)
    if backbone is None:
        raise UserError(
            f"{path} holds a student of unknown architecture: put its {metadata_path(path).name} beside it again."
        )
    seen = {"backbone": backbone, "head": identify_head(student), "fused": is_fused(student)}
    where = f"The architecture in {metadata_path(path)}"
    config = student_config(parse(StudentArchitecture, {**seen, **described}, where, _REMEDY))
    converted = convert(tensors)
    for key, value in to_timm_layout(student, config.backbone).items():
        converted[HF_STUDENT_PREFIX + key] = value
    preprocessing = _preprocessing(path, metadata, config)
    whole, text = video_config(tensors, config), _text_student(path, tensors, metadata)
    if text is not None:
        whole.detector_config = with_text_student(whole.detector_config, text)
    necks = metadata.trained_necks
    return Contents(path, whole, converted, preprocessing, visual_prompt, trained_necks=necks, text=text)


def _text_student(path: Path, tensors: Tensors, metadata: _Metadata) -> TextArchitecture | None:
    """The text student in a native file; one that nothing describes is taken for a published one.

    Raises:
        UserError: it is described as another one than it is.
    """
    key = TEXT_PREFIX + "encoder.positional_embedding.pos_embed.pos_embed"
    if key not in tensors:
        return None
    *_, length, width = tensors[key].shape
    projector = tensors.get(TEXT_PREFIX + "projector.weight")
    layers = {key.split(".")[5] for key in tensors if key.startswith(TEXT_PREFIX + "encoder.transformer.")}
    kind = "mct" if TEXT_PREFIX + "encoder.transformer.0.layer_scale" in tensors else "base"
    seen = {
        "backbone": f"{kind}/{width}x{len(layers)}x{max(1, width // _HEAD_SIZE)}",
        "embed_dim": 0 if projector is None else len(projector),
        "context_length": length,
        "padding": "published",
    }
    where = f"The text student in {path}"
    found = parse(TextArchitecture, seen | (metadata.text or {}), where, _REMEDY)
    if (found.context_length, found.embed_dim, found.shape.width) != (length, seen["embed_dim"], width):
        raise UserError(f"{where} is not the one that {metadata_path(path)} describes: {_REMEDY}.")
    return found


def with_text_student(detector: Any, text: TextArchitecture) -> Sam3LiteTextConfig:
    """A detector's config with a text student's in the place of SAM3's own."""
    parts = ("geometry_encoder_config", "detr_encoder_config", "detr_decoder_config", "mask_decoder_config")
    values = {part: getattr(detector, part).to_dict() for part in parts}
    for part in values.values():
        del part["model_type"]
    return Sam3LiteTextConfig(
        vision_config=detector.vision_config.to_dict(), text_config=text_config(text).to_dict(), **values
    )


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


def _read_metadata(path: Path) -> _Metadata:
    """The metadata beside a native file; nothing where there is none, as with files that another program merged."""
    beside = metadata_path(path)
    if not beside.exists():
        return _Metadata()
    metadata = parse(_Metadata, read_json_object(beside, _REMEDY), str(beside), _REMEDY)
    if metadata.bytes not in (None, path.stat().st_size):
        raise UserError(f"{beside} does not describe {path.name}, whose size differs: {_REMEDY}.")
    return metadata


def merged_necks(path: Path) -> TrainedNecks | None:
    """The necks that came into a merged model with its student; None where it has SAM3's own.

    Args:
        path: any file or folder of a student.

    Raises:
        UserError: its metadata says that there are such, and it is not a merged model or broken.
    """
    if path.is_dir():
        raw = read_hf_config(path) if (path / "config.json").is_file() else {}
        metadata = _directory_metadata(path, raw)
    else:
        metadata = _read_metadata(path)
    if not metadata.trained_necks:
        return None
    tensors = read_contents(path).tensors
    state = {
        NECK_PREFIXES[name] + key: value
        for name in metadata.trained_necks
        for key, value in under(tensors, name).items()
        if is_trained_layer(key)
    }
    return TrainedNecks(metadata.trained_necks, state)


def _directory_metadata(directory: Path, config: dict[str, Any]) -> _Metadata:
    where = f"{METADATA_KEY} in {directory / 'config.json'}"
    return parse(_Metadata, config.pop(METADATA_KEY, None) or {}, where, _REMEDY)


def _preprocessing(path: Path, metadata: _Metadata, backbone: PreTrainedConfig) -> Preprocessing:
    """What the image encoder takes, which has one image size.

    Raises:
        UserError: the metadata says another size.
    """
    given = metadata.preprocessing
    if given is not None and given.image_size != backbone.image_size:
        raise UserError(
            f"The metadata of {path} says that images are of {given.image_size} pixels, but its image encoder takes "
            f"{backbone.image_size}: {_REMEDY}."
        )
    return given or sam3_preprocessing(backbone.image_size)


def _read_directory(directory: Path) -> Contents:
    raw = read_hf_config(directory)
    if not {"detector_config", "tracker_config"} <= raw.keys():
        raise UserError(
            f"{directory / 'config.json'} is not in facebook/sam3's layout (a detector_config and a tracker_config): "
            "give facebook/sam3 itself, or a directory that merge wrote."
        )
    metadata, where = _directory_metadata(directory, raw), directory / "config.json"
    config = parse_hf_config(Sam3VideoConfig, raw, directory, EfficientSam3StudentConfig, Sam3LiteTextConfig)
    for name, recorded in metadata.sha256.items() if isinstance(metadata.sha256, dict) else ():
        if sha256_file(require_file(directory / Path(name).name, "Checkpoint", _REMEDY)) != recorded:
            raise UserError(f"{directory / name} is not the file whose SHA-256 is in config.json: {_REMEDY}.")
    tensors = {key: value for key, value in read_tensors(directory).items() if key.startswith(_PREFIXES)}
    if not any(key.startswith(HF_TRUNK_PREFIX) for key in tensors):
        raise UserError(f"Folder {directory} holds no image encoder: give a whole SAM3 directory.")
    backbone = config.detector_config.vision_config.backbone_config
    if isinstance(backbone, EfficientSam3StudentConfig):
        parse(StudentArchitecture, backbone.values, f"The student in {directory / 'config.json'}", _REMEDY)
    preprocessing = _preprocessing(directory, metadata, backbone)
    text = None if metadata.text is None else parse(TextArchitecture, metadata.text, f"text in {where}", _REMEDY)
    return Contents(directory, config, tensors, preprocessing, trained_necks=metadata.trained_necks, text=text)
