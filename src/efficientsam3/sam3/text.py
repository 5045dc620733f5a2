"""Text prompts: CLIP's tokenizer, built offline, SAM3's own text encoder, and the phrase that box prompts need."""

import gzip
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from efficientsam3.checkpoints.sam3 import build_model
from efficientsam3.models.text_students import END, pad_token
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
_CLIP = "clip_text_model"
_TOKENISED_AT_ONCE = 4096


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


def padding_of(config: Any) -> tuple[int, int]:
    """How many tokens a text encoder takes, and which one fills the positions behind a phrase.

    Args:
        config: transformers' of the text encoder, SAM3's own or a student's.
    """
    return config.max_position_embeddings, pad_token(getattr(config, "padding", "transformers"))


def tokenize(tokenizer: Any, text: str, config: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask of one phrase, each (1, L) int64.

    Args:
        tokenizer: see `build_tokenizer`.
        text: the phrase.
        config: transformers' of the text encoder, by default of SAM3's own.

    Raises:
        UserError: the phrase is empty, or longer than the text encoder takes.
    """
    ids, mask = pad_phrase(
        text, tokenizer(text)["input_ids"], *(padding_of(config) if config else (CONTEXT_LENGTH, END))
    )
    return torch.from_numpy(ids), torch.from_numpy(mask)


def tokenize_phrases(
    tokenizer: Any, phrases: Sequence[str], length: int, pad_id: int
) -> tuple[torch.Tensor, npt.NDArray[np.bool_]]:
    """Tokens of many phrases.

    Args:
        tokenizer: see `build_tokenizer`.
        phrases: N of them.
        length: L, the most tokens of a phrase, its start and its end included.
        pad_id: the token that fills the positions behind a phrase.

    Returns:
        Token ids (N, L) int64, and (N,) bool which phrases fit; the ids of one that does not mean nothing.
    """
    ids = np.full((len(phrases), length), pad_id, np.int64)
    fits = np.ones(len(phrases), bool)
    for start in range(0, len(phrases), _TOKENISED_AT_ONCE):
        tokens = tokenizer(list(phrases[start : start + _TOKENISED_AT_ONCE]))["input_ids"]
        for place, row in enumerate(tokens, start):
            fits[place] = 2 < len(row) <= length
            ids[place, : min(len(row), length)] = row[:length]
    return torch.from_numpy(ids), fits


class TextEncoder:
    """SAM3's own text encoder with the layer behind it, float32, frozen: the teacher of text students."""

    def __init__(self, contents: Contents, device: torch.device | None = None) -> None:
        """Take it out of a model.

        Raises:
            UserError: the model has none of its own, or a tensor of it is missing, unexpected, or not finite.
        """
        config: Any = contents.config.detector_config.text_config
        tensors = contents.tensors
        state = {key.removeprefix(_ENCODER): value for key, value in tensors.items() if key.startswith(_ENCODER)}
        if not state or config.model_type != _CLIP:
            raise UserError(f"{contents.path} has no text encoder of SAM3's own: give SAM3 itself.")
        self._encoder = build_model(CLIPTextModelWithProjection, config, state, contents.path).to(device)
        self._encoder.requires_grad_(False)
        weight, bias = (tensors[_PROJECTION + name].float() for name in ("weight", "bias"))
        self._weight, self._bias = weight.to(device, copy=True), bias.to(device, copy=True)

    @property
    def embed_dim(self) -> int:
        """D, channels of a token's features."""
        return len(self._weight)

    @torch.inference_mode()
    def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Token ids and mask (B, L) int64, L up to CONTEXT_LENGTH, to features (B, L, D); padding's mean nothing."""
        hidden = self._encoder(input_ids=ids, attention_mask=mask).last_hidden_state  # [B, L, W]
        return torch.nn.functional.linear(hidden, self._weight, self._bias)


def compute_visual_prompt(contents: Contents) -> torch.Tensor:
    """Features (3, width) float32 of the prompt "visual": start, word, end; padding is masked anyway and dropped.

    Raises:
        UserError: the tokenizer's vocabulary is not installed.
    """
    ids, mask = tokenize(build_tokenizer(), VISUAL_PROMPT, contents.config.detector_config.text_config)
    return TextEncoder(contents)(ids, mask)[0, : int(mask.sum())].clone()
