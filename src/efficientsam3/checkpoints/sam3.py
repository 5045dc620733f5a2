"""SAM3's image trunk out of a native `sam3.pt` or a Hugging Face SAM3 directory."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, Sam3ViTConfig, Sam3ViTModel
from transformers.utils import logging

from efficientsam3.checkpoints.fitting import Layout, check_finite, differences, layouts
from efficientsam3.checkpoints.hf_config import parse_hf_config, read_hf_config
from efficientsam3.checkpoints.reading import read_tensors
from efficientsam3.checkpoints.sam3_convert import convert
from efficientsam3.checkpoints.sam3_keys import HF_TRUNK_PREFIX, STUDENT_PREFIX
from efficientsam3.checkpoints.sam3_tensors import TRUNK_PREFIX
from efficientsam3.runtime.errors import UserError

# Where the trunk lies in a directory that `Sam3VideoModel`, `Sam3Model` or `Sam3ViTModel` saved.
_HF_PREFIXES = (HF_TRUNK_PREFIX, "vision_encoder.backbone.", "")
_BLOCKS = TRUNK_PREFIX + "blocks."
_STUDENT_MODEL_TYPE = "efficientsam3_student"


def trunk_config(tensors: Mapping[str, torch.Tensor]) -> Sam3ViTConfig:
    """Read the trunk's architecture off its tensors; their values are not looked at.

    The rotary tables `attn.freqs_cis` (cells, head size / 2) give the head size, the window and the grid.

    Args:
        tensors: a native state dict, or the part of it under TRUNK_PREFIX.

    Raises:
        UserError: there is no SAM3 trunk, or its tensors contradict each other.
    """
    if any(key.startswith(STUDENT_PREFIX) for key in tensors):
        raise UserError("The checkpoint is an EfficientSAM3, whose trunk is a student: give SAM3's own sam3.pt.")
    try:
        patches = tensors[TRUNK_PREFIX + "patch_embed.proj.weight"]
        positions = tensors[TRUNK_PREFIX + "pos_embed"]
        width, channels, patch_size, _ = patches.shape
        depth = 1 + max(int(key.removeprefix(_BLOCKS).split(".")[0]) for key in tensors if key.startswith(_BLOCKS))
        tables = [tensors[f"{_BLOCKS}{index}.attn.freqs_cis"] for index in range(depth)]
        mlp_width = tensors[f"{_BLOCKS}0.mlp.fc1.weight"].shape[0]
        grids = [_root(table.shape[0]) for table in tables]
        head_size = 2 * tables[0].shape[1]
        pretraining_grid = _root(positions.shape[1] - 1)
        window, grid = min(grids), max(grids)
        return Sam3ViTConfig(
            hidden_size=width,
            intermediate_size=mlp_width,
            num_hidden_layers=depth,
            num_attention_heads=width // head_size,
            num_channels=channels,
            image_size=grid * patch_size,
            patch_size=patch_size,
            window_size=window,
            global_attn_indexes=[index for index, cells in enumerate(grids) if cells == grid],
            pretrain_image_size=pretraining_grid * patch_size,
        )
    except (KeyError, ValueError, IndexError, ArithmeticError) as error:
        raise UserError(f"The checkpoint holds no SAM3 image trunk ({error}): give a native sam3.pt.") from error


def _root(cells: int) -> int:
    root = math.isqrt(cells)
    if root * root != cells:
        raise ValueError(f"a table of {cells} cells is not a square grid")
    return root


def _hf_trunk_config(directory: Path) -> Sam3ViTConfig:
    config = read_hf_config(directory)
    for part in ("detector_config", "vision_config", "backbone_config"):
        config = config.get(part, config)
        if not isinstance(config, dict):
            raise UserError(f"{directory / 'config.json'} has no object as {part}: give a whole SAM3 directory.")
    if config.get("model_type") == _STUDENT_MODEL_TYPE:
        raise UserError(f"{directory} is an EfficientSAM3, whose trunk is a student: give SAM3's own directory.")
    if config.get("model_type") != Sam3ViTConfig.model_type:
        raise UserError(f"{directory / 'config.json'} describes no SAM3 image trunk: give a SAM3 directory.")
    return parse_hf_config(Sam3ViTConfig, config, directory)


def inspect_trunk(path: Path) -> Sam3ViTConfig:
    """The trunk's architecture by a checkpoint's shapes alone: nothing of its weights is loaded.

    `config.image_size` is the one image size that its rotary grid takes.

    Raises:
        UserError: the path holds no SAM3 trunk.
    """
    return _hf_trunk_config(path) if path.is_dir() else trunk_config(read_tensors(path, TRUNK_PREFIX, values=False))


def load_trunk(path: Path) -> Sam3ViTModel:
    """Load the image trunk alone: float32, eval mode, frozen.

    Args:
        path: native `sam3.pt` (flat or `{"model": …}`), or a Hugging Face directory of `Sam3VideoModel`, `Sam3Model`
            or `Sam3ViTModel`.

    Returns:
        A model from (B, 3, S, S) pixels to `last_hidden_state` (B, grid * grid, width).

    Raises:
        UserError: the path holds no SAM3 trunk, or not all of it.
    """
    if path.is_dir():
        config, tensors = _hf_trunk_config(path), _hf_trunk_tensors(path)
    else:
        native = read_tensors(path, TRUNK_PREFIX)
        config = trunk_config(native)
        tensors = {key.removeprefix(HF_TRUNK_PREFIX): value for key, value in convert(native).items()}
    trunk: Sam3ViTModel = build_model(Sam3ViTModel, config, tensors, path)
    return trunk.requires_grad_(False)


def _hf_trunk_tensors(directory: Path) -> Mapping[str, torch.Tensor]:
    for prefix in _HF_PREFIXES:
        tensors = {key.removeprefix(prefix): value for key, value in read_tensors(directory, prefix).items()}
        if "embeddings.position_embeddings" in tensors:
            return tensors
    raise UserError(f"Folder {directory} holds no SAM3 image trunk: give a SAM3 directory.")


def build_model(model_class: Any, config: PreTrainedConfig, tensors: Mapping[str, torch.Tensor], origin: Path) -> Any:
    """Build a transformers model around copies of tensors, in float32 and eval mode; every key and shape must fit.

    Copies, since a mapped tensor would follow its file: a model replaced in place on disk would change in memory too,
    and one cut short would end the program.

    Raises:
        UserError: the tensors do not fit, an example of each difference is named; or one is not finite.
    """
    wrong = differences(layouts(tensors), expected_layouts(model_class, config, origin))
    if wrong:
        raise UserError(f"{origin} does not fit {model_class.__name__} ({wrong}): give an unchanged checkpoint.")
    own = {key: value.to(torch.float32, copy=True) for key, value in tensors.items()}
    check_finite(own, origin)
    with _no_progress_bar():
        model = model_class.from_pretrained(None, config=config, state_dict=own, dtype=torch.float32)
    return model.eval()


def expected_layouts(model_class: Any, config: PreTrainedConfig, origin: Path) -> dict[str, Layout]:
    """What a transformers model of this config takes, by building it without memory.

    Raises:
        UserError: transformers cannot build it.
    """
    try:
        return dict(_layouts_of(model_class, _Described(config, config.to_json_string(use_diff=False))))
    except Exception as error:  # transformers checks by all kinds of errors, or not at all
        raise UserError(f"{origin} describes no {model_class.__name__} ({error}): give an unchanged model.") from error


@dataclass(frozen=True)
class _Described:
    """A config, which is the same as another where both are written alike."""

    config: PreTrainedConfig = field(compare=False)
    text: str


@lru_cache(maxsize=16)
def _layouts_of(model_class: Any, described: _Described) -> dict[str, Layout]:
    """Built once, however often models of one config are read and compared; a merge does so four times."""
    with torch.device("meta"):
        return layouts(model_class(described.config).state_dict())


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
