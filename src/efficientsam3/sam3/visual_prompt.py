"""The one text prompt that box prompts need, computed once, so that the text encoder can be left out."""

from typing import Any

import torch
from transformers import CLIPTextModelWithProjection

from efficientsam3.checkpoints.sam3 import build_model
from efficientsam3.sam3.contents import Contents
from efficientsam3.sam3.parts import VISUAL_PROMPT
from efficientsam3.sam3.tokenizer import build_tokenizer, tokenize

_TEXT = "detector_model.text_encoder."
_PROJECTION = "detector_model.text_projection."


@torch.inference_mode()
def compute_visual_prompt(contents: Contents) -> torch.Tensor:
    """Features (3, width) float32 of the prompt "visual": start, word, end; padding is left out as it is masked anyway.

    Raises:
        UserError: the tokenizer's vocabulary is not installed.
    """
    ids, mask = tokenize(build_tokenizer(), VISUAL_PROMPT)
    config: Any = contents.config.detector_config.text_config
    state = {key.removeprefix(_TEXT): value for key, value in contents.tensors.items() if key.startswith(_TEXT)}
    encoder = build_model(CLIPTextModelWithProjection, config, state, contents.path)
    hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state  # [1, 32, D]
    weight, bias = (contents.tensors[_PROJECTION + name].float() for name in ("weight", "bias"))
    features = torch.nn.functional.linear(hidden, weight, bias)
    return features[0, : int(mask.sum())].clone()
