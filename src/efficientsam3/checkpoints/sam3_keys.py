"""From the keys of Meta's `sam3.pt` to those of facebook/sam3 on Hugging Face: one table of renames.

`sam3_convert` applies it, with the few transformations of values that go with it.

Targets are in facebook/sam3's own layout, from which `Sam3Model`, `Sam3TrackerModel` and `Sam3VideoModel` all load:
`detector_model.`, `tracker_model.` and `tracker_neck.`. Every source key is consumed, or ignored with a reason.
"""

from efficientsam3.checkpoints.sam3_tensors import TRUNK_PREFIX

STUDENT_PREFIX = TRUNK_PREFIX + "model."
TEXT_PREFIX = "detector.backbone.language_backbone."
NATIVE_NECKS = ("detector.backbone.vision_backbone.convs.", "detector.backbone.vision_backbone.sam2_convs.")
TRACKER_PREFIXES = ("tracker.", NATIVE_NECKS[1])
HF_TRUNK_PREFIX = "detector_model.vision_encoder.backbone."
HF_STUDENT_PREFIX = HF_TRUNK_PREFIX + "student."

# Scope of keys -> scope in the target, and renames of dotted parts within it. "#" is a number. The first scope that
# matches counts; its renames apply in order, each to whole dotted parts.
Renames = dict[str, str]
_ATTENTION: Renames = {"out_proj": "o_proj"}
_NORMS: Renames = {f"norm{i}": f"layer_norm{i}" for i in range(1, 5)}
_MLP: Renames = {"linear1": "mlp.fc1", "linear2": "mlp.fc2"}
_LAYERS_FROM_1: Renames = {f"layers.{i}": f"layer{i + 1}" for i in range(3)}
_IN_HIDDEN_OUT: Renames = {"layers.0": "proj_in", "layers.2": "proj_out", "layers.1": "layers.0"}
_NECK: Renames = {
    "dconv_2x2_0": "scale_layers.0",
    "dconv_2x2_1": "scale_layers.2",  # 1 is the GELU between
    "dconv_2x2": "scale_layers.0",
    "conv_1x1": "proj1",
    "conv_3x3": "proj2",
}
_ENCODER_LAYER = _ATTENTION | _NORMS | _MLP | {"cross_attn_image": "cross_attn"}
_DECODER_LAYER = (
    _ATTENTION
    | _MLP
    | {
        "cross_attn": "vision_cross_attn",
        "norm1": "vision_cross_attn_layer_norm",
        "ca_text": "text_cross_attn",
        "catext_norm": "text_cross_attn_layer_norm",
        "norm2": "self_attn_layer_norm",
        "norm3": "mlp_layer_norm",
    }
)
_TEXT = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text_projection": "text_projection.weight",
    "token_embedding": "text_model.embeddings.token_embedding",
    "ln_final": "text_model.final_layer_norm",
}
_TEXT_LAYER = {"attn": "self_attn", "ln_1": "layer_norm1", "ln_2": "layer_norm2", "c_fc": "fc1", "c_proj": "fc2"}
# A text student, see `text_keys`: MobileCLIP's names, and transformers' of `Sam3LiteTextTextModel`.
LITE_TEXT = {
    "positional_embedding.pos_embed.pos_embed": "embeddings.position_embedding.position_embedding",
    "embedding_layer": "embeddings.token_embedding",
    "projection_layer": "projection.weight",
}
LITE_TEXT_LAYER = {
    "pre_norm_mha.0": "layer_norm1",
    "pre_norm_mha.1.qkv_proj": "self_attn.qkv",
    "pre_norm_mha.1.out_proj": "self_attn.out_proj",
    "pre_norm_ffn.0": "layer_norm2",
    "pre_norm_ffn.1": "mlp.fc1",
    "pre_norm_ffn.4": "mlp.fc2",
    "token_mixer.norm.rbr_skip": "token_mixer.reference_batchnorm",
    "token_mixer.mixer.rbr_skip": "token_mixer.mixer.batchnorm_skip",
    "token_mixer.mixer.rbr_conv.0.conv": "token_mixer.mixer.conv",
    "token_mixer.mixer.rbr_conv.0.bn": "token_mixer.mixer.batchnorm_conv",
    "convffn.conv.conv": "conv_feed_forward.depthwise_conv",
    "convffn.conv.bn": "conv_feed_forward.depthwise_batchnorm",
    "convffn.fc1": "conv_feed_forward.mlp.fc1",
    "convffn.fc2": "conv_feed_forward.mlp.fc2",
}
_TRUNK = {
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "ln_pre": "layer_norm",
    "blocks": "layers",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.o_proj",
} | _NORMS
_GEOMETRY = {"norm": "prompt_layer_norm", "img_pre_norm": "vision_layer_norm", "encode_norm": "output_layer_norm"}
_DECODER = {
    "norm": "output_layer_norm",
    "bbox_embed": "box_head",
    "boxRPB_embed_x": "box_rpb_embed_x",
    "boxRPB_embed_y": "box_rpb_embed_y",
    "presence_token_head": "presence_head",
    "presence_token_out_norm": "presence_layer_norm",
} | _LAYERS_FROM_1
_SEGMENTATION = _ATTENTION | {
    "mask_predictor.mask_embed": "mask_embedder",
    "cross_attend_prompt": "prompt_cross_attn",
    "cross_attn_norm": "prompt_cross_attn_norm",
    "semantic_seg_head": "semantic_projection",
    "instance_seg_head": "instance_projection",
}
_SCORING = {
    "prompt_mlp.out_norm": "text_mlp_out_norm",
    "prompt_mlp": "text_mlp",
    "prompt_proj": "text_proj",
    "hs_proj": "query_proj",
} | _LAYERS_FROM_1
_MASK_DOWNSAMPLER = (
    {f"{3 * i}": f"layers.{i}.conv" for i in range(4)}
    | {f"{3 * i + 1}": f"layers.{i}.layer_norm" for i in range(4)}
    | {"12": "final_conv"}
)
_FUSER = {
    "gamma": "scale",
    "dwconv": "depthwise_conv",
    "norm": "layer_norm",
    "pwconv1": "pointwise_conv1",
    "pwconv2": "pointwise_conv2",
}
_PROMPT_ENCODER = {
    "mask_downscaling.0": "mask_embed.conv1",
    "mask_downscaling.1": "mask_embed.layer_norm1",
    "mask_downscaling.3": "mask_embed.conv2",
    "mask_downscaling.4": "mask_embed.layer_norm2",
    "mask_downscaling.6": "mask_embed.conv3",
}
_TWO_WAY = (
    _ATTENTION
    | _NORMS
    | {
        "mlp.lin1": "mlp.proj_in",
        "mlp.lin2": "mlp.proj_out",
        "norm_final_attn": "layer_norm_final_attn",
    }
)
_MASK_DECODER = {
    "output_upscaling.0": "upscale_conv1",
    "output_upscaling.1": "upscale_layer_norm",
    "output_upscaling.3": "upscale_conv2",
} | _IN_HIDDEN_OUT
# The same two modules in transformers' `SamModel`, whose sources are segment-anything's.
SAM_TRANSFORMER: Renames = _NORMS | {"norm_final_attn": "layer_norm_final_attn"}
SAM: Renames = (
    _PROMPT_ENCODER
    | _MASK_DECODER
    | {
        "point_embeddings": "point_embed",
        "pe_layer.positional_encoding_gaussian_matrix": "shared_embedding.positional_embedding",
    }
)
_TRACKER = {
    "maskmem_tpos_enc": "memory_temporal_positional_encoding",
    "no_mem_embed": "no_memory_embedding",
    "no_mem_pos_enc": "no_memory_positional_encoding",
    "no_obj_ptr": "no_object_pointer",
    "no_obj_embed_spatial": "occlusion_spatial_embedding_parameter",
    "maskmem_backbone.pix_feat_proj": "memory_encoder.feature_projection",
    "maskmem_backbone.out_proj": "memory_encoder.projection",
    "obj_ptr_proj": "object_pointer_proj",
    "obj_ptr_tpos_proj": "temporal_positional_encoding_projection_layer",
} | _IN_HIDDEN_OUT

SCOPES: tuple[tuple[str, str, Renames], ...] = (
    (TRUNK_PREFIX, HF_TRUNK_PREFIX, _TRUNK),
    ("detector.backbone.vision_backbone.convs.#.", "detector_model.vision_encoder.neck.fpn_layers.#.", _NECK),
    ("detector.backbone.vision_backbone.sam2_convs.#.", "tracker_neck.fpn_layers.#.", _NECK),
    (
        TEXT_PREFIX + "encoder.transformer.resblocks.#.",
        "detector_model.text_encoder.text_model.encoder.layers.#.",
        _TEXT_LAYER,
    ),
    (TEXT_PREFIX + "encoder.transformer.#.", "detector_model.text_encoder.layers.#.", LITE_TEXT_LAYER),
    (TEXT_PREFIX + "encoder.", "detector_model.text_encoder.", LITE_TEXT | _TEXT),
    (TEXT_PREFIX + "resizer.", "detector_model.text_projection.", {}),
    (TEXT_PREFIX + "projector.", "detector_model.text_projection.", {}),
    ("detector.geometry_encoder.encode.#.", "detector_model.geometry_encoder.layers.#.", _ENCODER_LAYER),
    ("detector.geometry_encoder.", "detector_model.geometry_encoder.", _GEOMETRY),
    ("detector.transformer.encoder.layers.#.", "detector_model.detr_encoder.layers.#.", _ENCODER_LAYER),
    ("detector.transformer.decoder.layers.#.", "detector_model.detr_decoder.layers.#.", _DECODER_LAYER),
    ("detector.transformer.decoder.", "detector_model.detr_decoder.", _DECODER),
    ("detector.segmentation_head.", "detector_model.mask_decoder.", _SEGMENTATION),
    ("detector.dot_prod_scoring.", "detector_model.dot_product_scoring.", _SCORING),
    (
        "tracker.transformer.encoder.",
        "tracker_model.memory_attention.",
        _ATTENTION | _NORMS | {"norm": "layer_norm"},
    ),
    (
        "tracker.maskmem_backbone.mask_downsampler.encoder.",
        "tracker_model.memory_encoder.mask_downsampler.",
        _MASK_DOWNSAMPLER,
    ),
    ("tracker.maskmem_backbone.fuser.", "tracker_model.memory_encoder.memory_fuser.", _FUSER),
    ("tracker.sam_prompt_encoder.", "tracker_model.prompt_encoder.", _PROMPT_ENCODER),
    ("tracker.sam_mask_decoder.transformer.", "tracker_model.mask_decoder.transformer.", _TWO_WAY),
    ("tracker.sam_mask_decoder.", "tracker_model.mask_decoder.", _MASK_DECODER),
    ("tracker.", "tracker_model.", _TRACKER),
)

IGNORED: tuple[tuple[str, str], ...] = (
    (r".*\.attn\.freqs_cis", "rotary tables, which transformers computes"),
    (r"detector\.geometry_encoder\.points_.*", "point prompts of the detector, which transformers does not have"),
)
