"""From the contents of a model on disk to transformers' models, each key checked."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    PreTrainedConfig,
    Sam3LiteTextModel,
    Sam3Model,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    Sam3VideoConfig,
    Sam3VideoModel,
)

from efficientsam3.checkpoints.fitting import differences, layouts
from efficientsam3.checkpoints.hf_config import LITE_TEXT_TYPE
from efficientsam3.checkpoints.sam3 import build_model, expected_layouts
from efficientsam3.checkpoints.sam3_keys import HF_TRUNK_PREFIX
from efficientsam3.models.hf_backbone import AbsentBackboneConfig  # this registers the student, too
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.contents import Contents, Tensors

DETECTOR = "detector_model.detr_encoder."  # tensors that are there where the detector is
_TEXT_KEYS = ("text_encoder.", "text_projection.")
# Tensors of the video memory, for which `Sam3TrackerModel` has no place.
_VIDEO_KEYS = re.compile(
    r"memory_|mask_downsample\.|object_pointer_proj\.|temporal_positional_encoding_projection_layer\.|"
    r"no_memory_positional_encoding|no_object_pointer|occlusion_spatial_embedding_parameter"
)
_TRANSFORMERS_MEMORY_WIDTH = 64
# The smallest text config, for a detector whose text encoder is discarded at once.
_NO_TEXT = {"vocab_size": 1, "intermediate_size": 1, "num_hidden_layers": 0, "num_attention_heads": 1}


@dataclass(frozen=True)
class Models:
    """The two image models, sharing one image encoder; None for a part that the model was merged without."""

    encoder: torch.nn.Module  # pixels (B, 3, S, S) to `last_hidden_state` (B, cells, width)
    detector: Any  # Sam3Model; its text_encoder is None where the model was merged without it
    tracker: Any  # Sam3TrackerModel


def build_models(contents: Contents) -> Models:
    """Build the models around the tensors, float32, eval mode, frozen.

    Raises:
        UserError: a tensor is missing, unexpected, or of another shape, or there is neither a detector nor a tracker.
    """
    detector: Any = build_detector(contents) if contents.has(DETECTOR) else None
    tracker: Any = build_tracker(contents, detector is None) if contents.has("tracker_model.") else None
    if detector is None and tracker is None:
        raise UserError(f"{contents.path} holds neither a detector nor a tracker: merge it again.")
    if detector is not None and tracker is not None:
        tracker.vision_encoder.backbone = detector.vision_encoder.backbone
    encoder = (detector or tracker).vision_encoder.backbone
    for model in (detector, tracker):
        if model is not None:
            model.requires_grad_(False)
    return Models(encoder, detector, tracker)


def build_detector(contents: Contents, with_backbone: bool = True) -> Any:
    """Build a `Sam3Model`, float32, eval mode; without a backbone it takes embeddings alone.

    With a text student it is a `Sam3LiteTextModel`. Its text_encoder is None where the model was merged without it.

    Raises:
        UserError: a tensor is missing, unexpected, or of another shape.
    """
    tensors = _under(contents.tensors, "detector_model.")
    config = contents.config.detector_config
    has_text = any(key.startswith(_TEXT_KEYS) for key in tensors)
    if not (has_text and with_backbone):
        config = type(config).from_dict(config.to_dict())
    if not with_backbone:
        trunk = HF_TRUNK_PREFIX.removeprefix("detector_model.")
        tensors = {key: value for key, value in tensors.items() if not key.startswith(trunk)}
        config.vision_config.backbone_config = _absent(config.vision_config.backbone_config)
    if has_text:
        kind = Sam3LiteTextModel if config.model_type == LITE_TEXT_TYPE else Sam3Model
        model = build_model(kind, config, tensors, contents.path)
        if getattr(config.text_config, "padding", None) == "published":
            model.text_encoder.register_forward_pre_hook(_without_mask, with_kwargs=True)
        return model
    config.text_config = type(config.text_config).from_dict(config.text_config.to_dict() | _NO_TEXT)
    with torch.device("meta"):
        filler = {key: value for key, value in Sam3Model(config).state_dict().items() if key.startswith(_TEXT_KEYS)}
    tensors |= {key: torch.zeros(value.shape) for key, value in filler.items()}
    model = build_model(Sam3Model, config, tensors, contents.path)
    model.text_encoder = model.text_projection = None
    return model


def _without_mask(encoder: torch.nn.Module, inputs: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Let a student attend to padding, as it did while it was trained."""
    return inputs, named | {"attention_mask": None}


def _absent(backbone: Any) -> AbsentBackboneConfig:
    shape = {"hidden_size": backbone.hidden_size, "patch_size": backbone.patch_size, "image_size": backbone.image_size}
    return AbsentBackboneConfig(**shape)


def build_tracker(contents: Contents, with_backbone: bool = False) -> Any:
    """Build a `Sam3TrackerModel`, float32, eval mode; without a backbone it takes embeddings alone.

    Raises:
        UserError: a tensor is missing, unexpected, or of another shape.
    """
    tensors = {
        key: value for key, value in _under(contents.tensors, "tracker_model.").items() if not _VIDEO_KEYS.match(key)
    }
    places = {"tracker_neck.": "neck."} | ({HF_TRUNK_PREFIX: "backbone."} if with_backbone else {})
    for prefix, place in places.items():
        for key, value in _under(contents.tensors, prefix).items():
            tensors[f"vision_encoder.{place}{key}"] = value
    config = image_tracker_config(contents.config)
    if not with_backbone:
        config.vision_config.backbone_config = _absent(config.vision_config.backbone_config)
    return build_model(Sam3TrackerModel, config, tensors, contents.path)


def image_tracker_config(config: Sam3VideoConfig) -> Sam3TrackerConfig:
    """The tracker's part of a video config."""
    tracker: PreTrainedConfig = config.tracker_config
    parts = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
    return Sam3TrackerConfig(**{part: getattr(tracker, part).to_dict() for part in parts})


def _under(tensors: Tensors, prefix: str) -> Tensors:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def check_whole(contents: Contents) -> None:
    """Compare the names and shapes of a whole SAM3, video memory included, with the model built on the meta device.

    Raises:
        UserError: a tensor is missing, unexpected, or of another shape.
    """
    expected = expected_layouts(Sam3VideoModel, contents.config, contents.path)
    found = layouts(contents.tensors)
    if contents.config.tracker_config.memory_encoder_output_channels != _TRANSFORMERS_MEMORY_WIDTH:
        # transformers knows one width of the memory alone, whatever the config says; the names are still compared.
        for key in found.keys() & expected.keys():
            if key.startswith("tracker_model.memory_attention."):
                found[key] = expected[key]
    wrong = differences(found, expected)
    if wrong:
        raise UserError(f"{contents.path} is not a whole SAM3 ({wrong}): give an unchanged checkpoint.")
