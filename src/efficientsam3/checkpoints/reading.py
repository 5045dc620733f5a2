"""Reading tensors from files, lazily and without running anything that a file may contain.

Mapped tensors cost memory only once they are looked at: reading a 3.45 GB `sam3.pt` for its shapes takes megabytes.
They follow the file: whoever keeps tensors beyond a short run copies them.
"""

import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from efficientsam3.checkpoints.archive import check_archive
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import open_regular, require_file, sha256_file
from efficientsam3.runtime.json_files import read_json_object

StateDict = dict[str, torch.Tensor]
SAFETENSORS_FILE = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
_ZIP_MAGIC = b"PK\x03\x04"
_DTYPES = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128}
    | {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
)
_GLOBAL_IN_MESSAGE = re.compile(r"GLOBAL ([\w.]+)")


class _InertConfig:
    """Stands in for a config object that a training checkpoint pickles: an ordered dict, which runs nothing.

    PyTorch's safe unpickler fills an OrderedDict's items and attributes, and no subclass of it.
    """

    def __new__(cls, *_: Any) -> Any:
        """Make the dict instead of an instance."""
        return OrderedDict()


# Config classes that published training checkpoints carry along with their weights.
_CONFIG_CLASSES = ("yacs.config.CfgNode", "argparse.Namespace")


def load_pickled(path: Path, values: bool = True, mapped: bool = True) -> Any:
    """Load a file that `torch.save` wrote, admitting tensors and plain containers alone.

    Args:
        path: the file.
        values: compare it with its checksums first, for whoever uses more than names and shapes.
        mapped: map the tensors where it is a zip, rather than reading them.

    Raises:
        UserError: the file is missing, unreadable, broken, changed since it was written, or holds objects that would
            run code.
    """
    is_zip = _first_bytes(path) == _ZIP_MAGIC
    stand_ins = [(_InertConfig, name) for name in _CONFIG_CLASSES]
    try:
        if is_zip:
            check_archive(path, values)
        with torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip and mapped)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(_unpickling_message(path, error)) from error
    except Exception as error:  # a parser of foreign bytes fails in ways that are not documented
        raise UserError(f"Checkpoint {path} is broken or cut short: download or write it again.") from error


def _first_bytes(path: Path) -> bytes:
    require_file(path, "Checkpoint", "check the path")
    try:
        with open_regular(path) as file:
            return file.read(len(_ZIP_MAGIC))
    except OSError as error:
        raise UserError(f"Checkpoint {path} cannot be read ({error.strerror}): check its mode and its disk.") from error


def _unpickling_message(path: Path, error: Exception) -> str:
    found = _GLOBAL_IN_MESSAGE.search(str(error))
    if found is None:
        return f"Checkpoint {path} is not a PyTorch checkpoint, or is broken: download or write it again."
    return (
        f"Checkpoint {path} holds a {found[1]} object, which is refused since loading it could run code: "
        "write its weights alone with torch.save(model.state_dict(), path)."
    )


def read_tensors(path: Path, prefix: str = "", *, values: bool = True, sha256: str | None = None) -> StateDict:
    """Read a state dict; the tensors are mapped from disk where the format allows it (all but pre-2020 `.pt` files).

    Args:
        path: a file of `torch.save` holding a flat dict or `{"model": dict}`, a `.safetensors` file, or a
            Hugging Face directory (one safetensors file or shards).
        prefix: only keys that start so are returned; they keep it.
        values: compare the file with its checksums first, for whoever uses more than names and shapes.
        sha256: of the file, where it is recorded: compared instead of its own checksums.

    Raises:
        UserError: nothing there, a broken file, one that has changed since it was written, or something else than
            dense tensors with values in it.
    """
    if path.is_dir():
        return _read_directory(path, prefix)
    if values and sha256 is not None and sha256 != sha256_file(path):
        raise UserError(f"Checkpoint {path} is not the file whose SHA-256 is recorded: write or copy both again.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, prefix)
    return select_tensors(load_pickled(path, values and sha256 is None), path, prefix)


def select_tensors(content: Any, path: Path, prefix: str = "") -> StateDict:
    """The tensors of what `load_pickled` returned: of its `model` entry if it has one.

    Raises:
        UserError: `content` is not a dict of dense tensors with values.
    """
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not content:
        kind = "empty dict" if isinstance(content, dict) else type(content).__name__
        raise UserError(f"Checkpoint {path} holds an {kind}, not a dict of tensors: give a file with a state dict.")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise UserError(
                f"Checkpoint {path} has a {type(value).__name__} under {key!r} where a tensor is expected: "
                "give a state dict, or a dict with one under 'model'."
            )
    tensors = {key: value for key, value in content.items() if key.startswith(prefix)}
    check_tensors(tensors, path)
    return tensors


def check_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Refuse tensors that no state dict has. Their values are not looked at.

    Raises:
        UserError: a tensor is empty, has no values, is sparse or quantised, or would take more than the file at `path`.
    """
    size = path.stat().st_size
    for key, value in tensors.items():
        if value.is_meta:
            wrong = "has no values (it is on the meta device)"
        elif value.layout != torch.strided:
            wrong = f"is sparse ({value.layout})"
        elif value.dtype not in _DTYPES:
            wrong = f"has dtype {value.dtype}"
        elif value.numel() == 0:
            wrong = f"is empty, of shape {tuple(value.shape)}"
        elif value.nbytes > size:
            wrong = f"has shape {tuple(value.shape)}, more than the file of {size} bytes can hold"
        else:
            continue
        raise UserError(f"{key} in {path} {wrong}, where dense numbers are expected: give an unchanged checkpoint.")


def _read_safetensors(path: Path, prefix: str) -> StateDict:
    _first_bytes(path)  # safetensors says of a file that it may not read that there is none
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"Checkpoint {path} is broken or cut short ({error}): download or write it again.") from error
    check_tensors(tensors, path)
    return tensors


def _read_directory(directory: Path, prefix: str) -> StateDict:
    index_path = directory / SAFETENSORS_INDEX
    if (directory / SAFETENSORS_FILE).is_file():
        return _read_safetensors(directory / SAFETENSORS_FILE, prefix)
    if not index_path.is_file():
        raise UserError(
            f"Folder {directory} has neither {SAFETENSORS_FILE} nor {SAFETENSORS_INDEX}: "
            "give a Hugging Face model directory, or the checkpoint file itself."
        )
    weight_map = _weight_map(index_path)
    tensors: StateDict = {}
    for shard in sorted({shard for key, shard in weight_map.items() if key.startswith(prefix)}):
        tensors |= _read_safetensors(directory / shard, prefix)
    missing = [key for key in weight_map if key.startswith(prefix) and key not in tensors]
    if missing:
        raise UserError(f"{index_path} names {missing[0]}, which its shard lacks: download the directory again.")
    return tensors


def _weight_map(index_path: Path) -> dict[str, str]:
    weight_map = read_json_object(index_path, "download the directory again").get("weight_map")
    if not isinstance(weight_map, dict):
        raise UserError(f"{index_path} is not a safetensors index: download the directory again.")
    # A shard is a file in the folder of its index, never a path to somewhere else.
    if any(Path(str(shard)).name != shard for shard in weight_map.values()):
        raise UserError(f"{index_path} names shards outside its folder: download the directory again.")
    return weight_map
