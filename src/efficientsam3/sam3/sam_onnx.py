"""SAM's prompt encoder and mask decoder out of their ONNX export, as transformers' modules.

An export keeps the names of most weights. Those that its constant folding has changed lie at known places of the graph:
a linear layer's matrix before the named bias that is added to it, a LayerNorm of channels behind the named convolution.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import SamConfig
from transformers.models.sam.modeling_sam import SamMaskDecoder, SamPromptEncoder

from efficientsam3.checkpoints.fitting import check_finite, differences, layouts
from efficientsam3.checkpoints.sam3_convert import rename_parts
from efficientsam3.checkpoints.sam3_keys import SAM, SAM_TRANSFORMER
from efficientsam3.runtime.errors import UserError

REMEDY = "give the ONNX export of SAM's own prompt encoder and mask decoder, in float32"
_NAME = re.compile(r"(?:^|\.)((?:mask_decoder|prompt_encoder)\..+)")
_TRANSFORMER = "mask_decoder.transformer."
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_EPSILON = 1e-5  # of LayerNorm, where the graph has no such node

Tensors = dict[str, torch.Tensor]


def build_sam(path: Path, image_size: int, embed_size: int) -> tuple[nn.Module, nn.Module]:
    """The prompt encoder and the mask decoder, float32.

    Args:
        path: an ONNX model that onnxruntime opens.
        image_size: side in pixels of the input of its image encoder.
        embed_size: cells per side of its embeddings.

    Raises:
        UserError: its weights are not those of SAM's decoder; or onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError(f"Reading {path} needs onnx: pip install 'efficientsam3[onnx-export]'.") from error
    graph = onnx.load(path).graph
    try:
        tensors = {_rename(key): value for key, value in _Weights(graph).found()}
        config = _config(graph, tensors, image_size, image_size // embed_size)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{path} is no mask decoder of SAM's architecture ({error}): {REMEDY}.") from error
    parts = nn.ModuleDict(
        {"prompt_encoder": SamPromptEncoder(config), "mask_decoder": SamMaskDecoder(config.mask_decoder_config)}
    )
    if wrong := differences(layouts(tensors), layouts(parts.state_dict())):
        raise UserError(f"{path} is no mask decoder of SAM's architecture ({wrong}): {REMEDY}.")
    check_finite(tensors, path)
    parts.load_state_dict(tensors)
    return parts["prompt_encoder"], parts["mask_decoder"]


def _rename(key: str) -> str:
    if key.startswith(_TRANSFORMER):
        return _TRANSFORMER + rename_parts(key.removeprefix(_TRANSFORMER), SAM_TRANSFORMER)
    return rename_parts(key, SAM)


def _config(graph: Any, tensors: Mapping[str, torch.Tensor], image_size: int, cell: int) -> SamConfig:
    """The architecture, by the shapes of transformers' tensors; heads are SAM's 8, which no shape tells."""
    width = tensors["mask_decoder.iou_token.weight"].shape[1]
    epsilons = [
        item.f
        for node in graph.node
        if node.op_type == "LayerNormalization"
        for item in node.attribute
        if item.name == "epsilon"
    ]
    layer = _TRANSFORMER + "layers.{}."
    inner = tensors[layer.format(0) + "cross_attn_token_to_image.q_proj.weight"].shape[0]
    decoder = {
        "hidden_size": width,
        "mlp_dim": tensors[layer.format(0) + "mlp.lin1.weight"].shape[0],
        "num_hidden_layers": sum(key.endswith(".mlp.lin1.weight") for key in tensors),
        "attention_downsample_rate": width // inner,
        "num_multimask_outputs": len(tensors["mask_decoder.mask_tokens.weight"]) - 1,
        "iou_head_hidden_dim": tensors["mask_decoder.iou_prediction_head.proj_in.weight"].shape[0],
        "layer_norm_eps": epsilons[0] if epsilons else _EPSILON,
    }
    prompts = {
        "hidden_size": width,
        "image_size": image_size,
        "patch_size": cell,
        "mask_input_channels": tensors["prompt_encoder.mask_embed.conv2.weight"].shape[0],
    }
    positions = tensors["prompt_encoder.shared_embedding.positional_embedding"].shape[1]
    config = SamConfig(
        vision_config={"num_pos_feats": positions}, prompt_encoder_config=prompts, mask_decoder_config=decoder
    )
    config.mask_decoder_config._attn_implementation = "sdpa"
    return config


class _Weights:
    """The weights that a graph names, and those whose place in it names them."""

    def __init__(self, graph: Any) -> None:
        from onnx import numpy_helper

        self._graph = graph
        self._values: Tensors = {
            item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer
        }
        self._producer = {output: node for node in graph.node for output in node.output}
        self._consumers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self._consumers.setdefault(name, []).append(node)

    def found(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Names in segment-anything's layout, with their tensors."""
        for name, value in self._values.items():
            if (key := _key(name)) is not None:
                yield key, value
        for node in self._graph.node:
            for name in node.input:
                if name in self._values and _key(name) is None:
                    yield from self._by_place(node, self._values[name])

    def _by_place(self, node: Any, value: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        shape = tuple(value.shape)
        if node.op_type == "MatMul" and len(shape) == 2:
            bias = self._key_added_to(node.output[0])
            if bias is not None:
                yield bias.removesuffix("bias") + "weight", value.T.contiguous()
        elif node.op_type == "Mul" and len(shape) == 4:
            yield "prompt_encoder.no_mask_embed.weight", value.reshape(1, -1)
        elif node.op_type in ("Mul", "Add") and shape[1:] == (1, 1):
            yield self._norm_of(node) + (".weight" if node.op_type == "Mul" else ".bias"), value.flatten()
        elif node.op_type in ("Expand", "Concat") and len(shape) == 3:
            yield "mask_decoder.iou_token.weight", value[0, :1]
            yield "mask_decoder.mask_tokens.weight", value[0, 1:]

    def _key_added_to(self, output: str) -> str | None:
        """The name of the weight that is added to a node's output."""
        sums = [node for node in self._consumers.get(output, []) if node.op_type == "Add"]
        return next((key for node in sums for name in node.input if (key := _key(name)) is not None), None)

    def _norm_of(self, node: Any) -> str:
        """The module of a LayerNorm of channels: the next after the convolution whose output it takes."""
        while node.op_type not in _CONVOLUTIONS:
            before = [self._producer[name] for name in node.input if name in self._producer]
            node = before[0]
        module, number, _ = (_key(node.input[1]) or node.name).rsplit(".", 2)
        return f"{module}.{int(number) + 1}"


def _key(name: str) -> str | None:
    found = _NAME.search(name)
    return None if found is None else found[1]
