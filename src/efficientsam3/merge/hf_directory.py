"""An EfficientSAM3 as a Hugging Face directory in facebook/sam3's layout."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import PreTrainedConfig, Sam3Processor
from transformers.models.sam3.image_processing_sam3 import Sam3ImageProcessor

from efficientsam3.checkpoints.reading import SAFETENSORS_INDEX, StateDict
from efficientsam3.checkpoints.sam3_keys import HF_STUDENT_PREFIX
from efficientsam3.checkpoints.text_keys import HF_TEXT_PREFIXES
from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.merge.account import MergeAccount
from efficientsam3.merge.card import model_card, model_metadata
from efficientsam3.merge.inputs import Sam3Input, StudentInput, hf_text, without_trunk
from efficientsam3.merge.verify import fingerprints, verify_necks, verify_student, verify_text, verify_written
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import sha256_file, write_json, write_text
from efficientsam3.runtime.memory import release_pages
from efficientsam3.runtime.own_files import own_folder
from efficientsam3.sam3.build import check_whole
from efficientsam3.sam3.contents import METADATA_KEY, read_contents, student_config, with_text_student
from efficientsam3.sam3.parts import PARTS
from efficientsam3.sam3.text import build_tokenizer

HF_DIRECTORY = "a Hugging Face directory"
_SHARD_BYTES = 500_000_000


def write_hf_directory(
    output: Path,
    student: StudentInput,
    sam3: Sam3Input,
    dtype: torch.dtype | None,
    account: MergeAccount,
    overwrite: bool = False,
) -> None:
    """Write the directory, verified before it replaces what was there; `account` gets its size.

    Raises:
        UserError: `output` holds what the program did not write and `overwrite` is False, or the disk is full.
    """
    tensors = without_trunk(sam3.contents)
    tensors |= {HF_STUDENT_PREFIX + key: value for key, value in student.state.items()}
    tensors |= {} if student.necks is None else student.necks.state
    if student.text is not None:
        own = tuple(HF_TEXT_PREFIXES.values())
        tensors = {key: value for key, value in tensors.items() if not key.startswith(own)} | hf_text(student.text)
    if dtype is not None:
        tensors = {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}
    expected = fingerprints(tensors, sam3.path)
    metadata = model_metadata(student, sam3, frozenset(PARTS), dtype)
    stored = dtype or next(value.dtype for value in tensors.values() if value.is_floating_point())
    with own_folder(output, HF_DIRECTORY, overwrite) as folder:
        _write_shards(folder, tensors, output)
        del tensors
        metadata["sha256"] = {file.name: sha256_file(file) for file in sorted(folder.glob("*.safetensors"))}
        write_json(folder / "config.json", _config(student, sam3, stored) | {METADATA_KEY: metadata})
        _write_processor(folder, student.preprocessing or sam3.contents.preprocessing)
        verify_written(folder, expected)
        check_whole(read_contents(folder))
        verify_student(folder, student, dtype)
        verify_necks(folder, student, sam3, frozenset(PARTS), dtype)
        verify_text(folder, student, dtype)
        account.bytes = sum(file.stat().st_size for file in folder.iterdir())
        write_text(folder / "README.md", model_card(output.name, metadata, account))


def _shards(tensors: StateDict) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for key, value in tensors.items():
        if shards[-1] and size + value.nbytes > _SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += value.nbytes
    return shards


def _write_shards(folder: Path, tensors: StateDict, final: Path) -> None:
    shards = _shards(tensors)
    weight_map: dict[str, str] = {}
    for index, keys in enumerate(shards):
        name = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        # Cloned, since safetensors refuses tensors that share memory, as the parts of a split one do.
        shard = {key: tensors[key].clone(memory_format=torch.contiguous_format) for key in keys}
        try:
            save_file(shard, folder / name, metadata={"format": "pt"})
        except (SafetensorError, OSError) as error:
            raise UserError(f"Cannot write {final} ({error}): free some space or choose another path.") from error
        # safetensors makes its files private to the user; the folder follows the umask.
        (folder / name).chmod(0o666 & folder.stat().st_mode)
        release_pages(tensors.values())
        weight_map |= dict.fromkeys(keys, name)
    total = sum(value.nbytes for value in tensors.values())
    write_json(folder / SAFETENSORS_INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _config(student: StudentInput, sam3: Sam3Input, dtype: torch.dtype) -> dict[str, Any]:
    """SAM3's config with the student as the backbone of both models."""
    config: dict[str, Any] = json.loads(sam3.contents.config.to_json_string(use_diff=False))
    if student.text is not None:
        detector = with_text_student(sam3.contents.config.detector_config, student.text.architecture)
        config["detector_config"] = json.loads(detector.to_json_string(use_diff=False))
    backbone: PreTrainedConfig = student_config(student.architecture)
    for part in ("detector_config", "tracker_config"):
        config[part]["vision_config"]["backbone_config"] = json.loads(backbone.to_json_string(use_diff=False))
    return config | {"architectures": ["Sam3VideoModel"], "dtype": str(dtype).removeprefix("torch.")}


def _write_processor(folder: Path, preprocessing: Preprocessing) -> None:
    """Image processor and tokenizer, so that `Sam3Processor.from_pretrained` needs no network."""
    side = preprocessing.image_size
    images = Sam3ImageProcessor(
        size={"height": side, "width": side}, image_mean=list(preprocessing.mean), image_std=list(preprocessing.std)
    )
    Sam3Processor(images, build_tokenizer()).save_pretrained(folder)
