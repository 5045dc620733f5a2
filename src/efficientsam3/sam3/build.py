"""From the contents of a model on disk to transformers' models, each key checked."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    PreTrainedConfig,
    Sam3Model,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    Sam3VideoConfig,
    Sam3VideoModel,
)

from efficientsam3.checkpoints.fitting import differences, layouts
from efficientsam3.checkpoints.sam3 import build_model, expected_layouts
from efficientsam3.checkpoints.sam3_keys import HF_TRUNK_PREFIX
from efficientsam3.models.hf_backbone import AbsentBackboneConfig  # this registers the student, too
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.contents import Contents, Tensors

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
    detector: Any = _build_detector(contents) if contents.has("detector_model.detr_encoder.") else None
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


def _build_detector(contents: Contents) -> Any:
    tensors = _under(contents.tensors, "detector_model.")
    config = contents.config.detector_config
    if any(key.startswith(_TEXT_KEYS) for key in tensors):
        return build_model(Sam3Model, config, tensors, contents.path)
    config = type(config).from_dict(config.to_dict())
    config.text_config = type(config.text_config).from_dict(config.text_config.to_dict() | _NO_TEXT)
    with torch.device("meta"):
        filler = {key: value for key, value in Sam3Model(config).state_dict().items() if key.startswith(_TEXT_KEYS)}
    tensors |= {key: torch.zeros(value.shape) for key, value in filler.items()}
    model = build_model(Sam3Model, config, tensors, contents.path)
    model.text_encoder = model.text_projection = None
    return model


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
        there = config.vision_config.backbone_config
        shape = {"hidden_size": there.hidden_size, "patch_size": there.patch_size, "image_size": there.image_size}
        config.vision_config.backbone_config = AbsentBackboneConfig(**shape)
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
