"""The keys of a text student under transformers' names and under those of published files, mapped both ways.

`sam3_keys` has the names, since a merged model is converted like SAM3 itself. Published files have `encoder.` and
`projector.` in the place of `detector.backbone.language_backbone.encoder.` and `.resizer.`.
"""

import re
from collections.abc import Mapping

import torch

from efficientsam3.checkpoints.sam3_convert import convert, rename_parts
from efficientsam3.checkpoints.sam3_keys import LITE_TEXT, LITE_TEXT_LAYER, TEXT_PREFIX

HF_TEXT_PREFIXES = {"encoder.": "detector_model.text_encoder.", "projector.": "detector_model.text_projection."}
_LAYER = re.compile(r"layers\.(\d+)\.")
_QUERY = re.compile(r"(.*\.)q_proj\.(weight|bias)")
_OTHER_PARTS = re.compile(r".*\.self_attn\.[kv]_proj\.(weight|bias)")
_NATIVE = {target: source for source, target in LITE_TEXT.items()}
_NATIVE_LAYER = {target: source for source, target in LITE_TEXT_LAYER.items()}


def to_native_text(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A text student's tensors, as `TextStudent` has them, under the published names."""
    native: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if _OTHER_PARTS.fullmatch(key):
            continue
        query = _QUERY.fullmatch(key)
        if query is None:
            native[_native_key(key)] = value
            continue
        parts = [state[f"{query[1]}{part}_proj.{query[2]}"] for part in "qkv"]
        native[_native_key(f"{query[1]}qkv.{query[2]}")] = torch.cat(parts)
    return native


def _native_key(key: str) -> str:
    scope, _, name = key.partition(".")
    if scope == "projector":
        return key
    layer = _LAYER.match(name)
    if layer is None:
        return f"encoder.{rename_parts(name, _NATIVE)}"
    return f"encoder.transformer.{layer[1]}.{rename_parts(name[layer.end() :], _NATIVE_LAYER)}"


def from_native_text(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `to_native_text`.

    Raises:
        UserError: a key that no text student has.
    """
    converted = convert({TEXT_PREFIX + key: value for key, value in tensors.items()})
    state: dict[str, torch.Tensor] = {}
    for own, prefix in HF_TEXT_PREFIXES.items():
        state |= {own + key.removeprefix(prefix): value for key, value in converted.items() if key.startswith(prefix)}
    return state
