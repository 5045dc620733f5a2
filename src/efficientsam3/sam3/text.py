"""Text prompts: CLIP's tokenizer, built offline, and the features of the one phrase that box prompts need."""

import gzip
import importlib.util
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from efficientsam3.checkpoints.sam3 import build_model
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.contents import Contents
from efficientsam3.sam3.parts import VISUAL_PROMPT
from efficientsam3.sam3.prompts import pad_phrase

CONTEXT_LENGTH = 32  # of SAM3's text encoder
# open_clip_torch carries the vocabulary inside its package.
_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
# The file lists more merges than CLIP uses: its vocabulary has 49408 entries, of which 512 are bytes and 2 special.
_MERGES = 49408 - 512 - 2
_ENCODER = "detector_model.text_encoder."
_PROJECTION = "detector_model.text_projection."


def build_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair encoder with 49408 entries and 32 positions.

    Raises:
        UserError: open_clip_torch is not installed.
    """
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("Text prompts need open_clip_torch for its vocabulary: run pip install open_clip_torch.")
    text = gzip.decompress((Path(spec.submodule_search_locations[0]) / _VOCABULARY).read_bytes()).decode("utf-8")
    merges = [tuple(line.split()) for line in text.split("\n")[1 : 1 + _MERGES]]
    # GPT-2's byte alphabet in CLIP's order is the order of its code points.
    alphabet = sorted(ByteLevel.alphabet())
    entries = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(merge) for merge in merges)]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT_LENGTH)


def tokenize(tokenizer: Any, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask of one phrase, each (1, CONTEXT_LENGTH) int64.

    Raises:
        UserError: the phrase is empty, or longer than the text encoder takes.
    """
    ids, mask = pad_phrase(text, tokenizer(text)["input_ids"], CONTEXT_LENGTH, tokenizer.pad_token_id)
    return torch.from_numpy(ids), torch.from_numpy(mask)


@torch.inference_mode()
def compute_visual_prompt(contents: Contents) -> torch.Tensor:
    """Features (3, width) float32 of the prompt "visual": start, word, end; padding is masked anyway and dropped.

    Raises:
        UserError: the tokenizer's vocabulary is not installed.
    """
    ids, mask = tokenize(build_tokenizer(), VISUAL_PROMPT)
    config: Any = contents.config.detector_config.text_config
    state = {key.removeprefix(_ENCODER): value for key, value in contents.tensors.items() if key.startswith(_ENCODER)}
    encoder = build_model(CLIPTextModelWithProjection, config, state, contents.path)
    hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state  # [1, 32, D]
    weight, bias = (contents.tensors[_PROJECTION + name].float() for name in ("weight", "bias"))
    features = torch.nn.functional.linear(hidden, weight, bias)
    return features[0, : int(mask.sum())].clone()
