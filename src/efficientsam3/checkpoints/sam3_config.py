"""SAM3's whole architecture as a transformers config, read off the tensors of a native checkpoint.

What shapes do not show is the same in every SAM3: activations, dropout, CLIP's head size of 64, the tracker's 8 heads.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig, Sam3Config, Sam3TrackerVideoConfig, Sam3VideoConfig

from efficientsam3.checkpoints.sam3_keys import TEXT_PREFIX
from efficientsam3.runtime.errors import UserError

_CLIP_HEAD_SIZE = 64
_VISION = "detector.backbone.vision_backbone."
_GEOMETRY = "detector.geometry_encoder."
_DETR = "detector.transformer."
_MASKS = "detector.segmentation_head."
_SAM = "tracker.sam_mask_decoder."
_MEMORY = "tracker.maskmem_backbone."


class _Reader:
    """Looks up shapes; a part that `--keep` left out has none, and transformers' defaults stay."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def has(self, prefix: str) -> bool:
        return any(key.startswith(prefix) for key in self._tensors)

    def size(self, key: str, dimension: int = 0) -> int:
        if key not in self._tensors:
            raise UserError(f"The SAM3 checkpoint lacks {key}: give a whole, unchanged one.")
        shape = self._tensors[key].shape
        if len(shape) <= dimension:
            raise UserError(f"{key} in the SAM3 checkpoint has shape {tuple(shape)}: give a whole, unchanged one.")
        return shape[dimension]

    def count(self, prefix: str) -> int:
        """Number of numbered modules under a prefix, by the highest number."""
        numbers = (key.removeprefix(prefix).split(".")[0] for key in self._tensors if key.startswith(prefix))
        return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)


def video_config(tensors: Mapping[str, torch.Tensor], backbone_config: PreTrainedConfig) -> Sam3VideoConfig:
    """The config of facebook/sam3's layout, out of which `Sam3Model` and `Sam3TrackerModel` take their parts.

    Args:
        tensors: a native SAM3's state dict; the trunk's tensors are not looked at, values neither.
        backbone_config: of SAM3's trunk or of a student, with `image_size`, `patch_size` and `hidden_size`.

    Raises:
        UserError: a tensor whose shape gives a size is missing, or the sizes contradict each other.
    """
    read = _Reader(tensors)
    image_size = backbone_config.image_size
    try:
        detector = detector_config(read, backbone_config)
        return Sam3VideoConfig(
            detector_config=detector.to_dict(),
            tracker_config=tracker_config(read, detector.vision_config.to_dict(), image_size).to_dict(),
            low_res_mask_size=4 * image_size // backbone_config.patch_size,
        )
    except UserError:
        raise
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"The SAM3 checkpoint's sizes do not fit ({error}): give a whole, unchanged one.") from error


def detector_config(read: _Reader, backbone_config: PreTrainedConfig) -> Sam3Config:
    """Config of the image detector with its neck and text encoder."""
    grid = backbone_config.image_size // backbone_config.patch_size
    neck = next(name for name in ("convs", "sam2_convs") if name == "sam2_convs" or read.has(f"{_VISION}{name}."))
    width = read.size(f"{_VISION}{neck}.0.conv_3x3.weight")
    vision = {
        "backbone_config": backbone_config.to_dict(),
        "fpn_hidden_size": width,
        "backbone_feature_sizes": [[scale * grid, scale * grid] for scale in (4, 2, 1)],
    }
    parts: dict[str, Any] = _detector_parts(read) if read.has("detector.transformer.") else {}
    return Sam3Config(vision_config=vision, **parts)


def _detector_parts(read: _Reader) -> dict[str, Any]:
    heads = read.size(f"{_DETR}decoder.boxRPB_embed_x.layers.1.weight")
    parts = {
        "geometry_encoder_config": {
            "hidden_size": read.size(f"{_GEOMETRY}label_embed.weight", 1),
            "num_layers": read.count(f"{_GEOMETRY}encode."),
            "num_attention_heads": heads,
            "intermediate_size": read.size(f"{_GEOMETRY}encode.0.linear1.weight"),
            "roi_size": read.size(f"{_GEOMETRY}boxes_pool_project.weight", 2),
        },
        "detr_encoder_config": _detr(read, "encoder", heads),
        "detr_decoder_config": _detr(read, "decoder", heads)
        | {"num_queries": read.size(f"{_DETR}decoder.query_embed.weight")},
        "mask_decoder_config": {
            "hidden_size": read.size(f"{_MASKS}instance_seg_head.weight"),
            "num_upsampling_stages": read.count(f"{_MASKS}pixel_decoder.conv_layers."),
            "num_attention_heads": heads,
        },
    }
    return parts | ({"text_config": _text(read)} if read.has(TEXT_PREFIX + "encoder.token_embedding.") else {})


def _detr(read: _Reader, name: str, heads: int) -> dict[str, int]:
    layer = f"{_DETR}{name}.layers.0.linear1.weight"
    return {
        "hidden_size": read.size(layer, 1),
        "num_layers": read.count(f"{_DETR}{name}.layers."),
        "num_attention_heads": heads,
        "intermediate_size": read.size(layer),
    }


def _text(read: _Reader) -> dict[str, Any]:
    encoder = TEXT_PREFIX + "encoder."
    width = read.size(encoder + "token_embedding.weight", 1)
    return {
        "model_type": "clip_text_model",
        "vocab_size": read.size(encoder + "token_embedding.weight"),
        "hidden_size": width,
        "intermediate_size": read.size(encoder + "transformer.resblocks.0.mlp.c_fc.weight"),
        "projection_dim": read.size(encoder + "text_projection", 1),
        "num_hidden_layers": read.count(encoder + "transformer.resblocks."),
        "num_attention_heads": max(1, width // _CLIP_HEAD_SIZE),
        "max_position_embeddings": read.size(encoder + "positional_embedding"),
        "hidden_act": "gelu",
    }


def tracker_config(read: _Reader, vision: dict[str, Any], image_size: int) -> Sam3TrackerVideoConfig:
    """Config of the tracker, the video memory included."""
    if not read.has("tracker."):
        return Sam3TrackerVideoConfig(vision_config=vision, image_size=image_size)
    width = read.size(f"{_SAM}iou_token.weight", 1)
    return Sam3TrackerVideoConfig(
        vision_config=vision,
        image_size=image_size,
        prompt_encoder_config={
            "hidden_size": width,
            "image_size": image_size,
            "patch_size": vision["backbone_config"]["patch_size"],
            "mask_input_channels": read.size("tracker.sam_prompt_encoder.mask_downscaling.3.weight"),
            "num_point_embeddings": read.count("tracker.sam_prompt_encoder.point_embeddings."),
        },
        mask_decoder_config={
            "hidden_size": width,
            "mlp_dim": read.size(f"{_SAM}transformer.layers.0.mlp.lin1.weight"),
            "num_hidden_layers": read.count(f"{_SAM}transformer.layers."),
            "attention_downsample_rate": width
            // read.size(f"{_SAM}transformer.layers.0.cross_attn_token_to_image.q_proj.weight"),
            "num_multimask_outputs": read.size(f"{_SAM}mask_tokens.weight") - 1,
            "iou_head_hidden_dim": read.size(f"{_SAM}iou_prediction_head.layers.0.weight"),
        },
        **_memory(read),
    )


def _memory(read: _Reader) -> dict[str, int]:
    layers = "tracker.transformer.encoder.layers."
    return {
        "num_maskmem": read.size("tracker.maskmem_tpos_enc"),
        "memory_attention_hidden_size": read.size(layers + "0.linear1.weight", 1),
        "memory_attention_num_layers": read.count(layers),
        "memory_attention_feed_forward_hidden_size": read.size(layers + "0.linear1.weight"),
        "memory_encoder_hidden_size": read.size(_MEMORY + "pix_feat_proj.weight"),
        "memory_encoder_output_channels": read.size(_MEMORY + "out_proj.weight"),
        "mask_downsampler_embed_dim": read.size(_MEMORY + "mask_downsampler.encoder.12.weight"),
        "memory_fuser_num_layers": read.count(_MEMORY + "fuser.layers."),
        "memory_fuser_embed_dim": read.size(_MEMORY + "fuser.layers.0.gamma"),
        "memory_fuser_intermediate_dim": read.size(_MEMORY + "fuser.layers.0.pwconv1.weight"),
    }
