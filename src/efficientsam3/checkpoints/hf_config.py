"""config.json of a Hugging Face directory, checked before transformers builds anything by it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from transformers import PreTrainedConfig

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.json_files import read_json_object

_REMEDY = "give a whole, unchanged Hugging Face directory"
LITE_TEXT_TYPE = "sam3_lite_text"  # of a detector with a text student
_SIZE = re.compile(r".*(size|dim|layers|heads|stages|channels|queries|embeddings|rate|stride)")
_LARGEST = 1 << 20  # the largest number in SAM3's is 49408, of tokens
_MOST_LAYERS = 1000
_MOST_CELLS = 1 << 9  # a side of the trunk's grid, which has 72: its rotary tables grow by the square


def read_hf_config(directory: Path) -> dict[str, Any]:
    """The content of a Hugging Face directory's config.json.

    Raises:
        UserError: there is no config.json, or it is not a JSON object.
    """
    return read_json_object(directory / "config.json", _REMEDY)


def parse_hf_config(
    kind: type[PreTrainedConfig], values: Mapping[str, Any], directory: Path, *students: type[PreTrainedConfig]
) -> Any:
    """The config that config.json, or a part of it, describes.

    Every value is compared with the one that transformers has by default: its type, that a size is a size, and that
    none is so large that building the model would take all memory.

    Args:
        kind: the config's class.
        values: what was read.
        directory: where from.
        students: classes that a `backbone_config` may have instead of the trunk's, or a `detector_config` of
            LITE_TEXT_TYPE instead of SAM3's.

    Raises:
        UserError: a value is not of its type, or too large; or transformers refuses it.
    """
    path = directory / "config.json"
    _Check(path, {student.model_type: student for student in students}).object(values, _defaults(kind), "")
    try:
        return kind.from_dict(dict(values))
    except Exception as error:  # transformers checks by all kinds of errors, and computes with values before
        raise UserError(f"{path} is not understood ({error}): {_REMEDY}.") from error


def _defaults(kind: type[PreTrainedConfig]) -> dict[str, Any]:
    values: dict[str, Any] = kind().to_dict()
    return values


@dataclass(frozen=True)
class _Check:
    path: Path
    students: Mapping[str, type[PreTrainedConfig]]

    def object(self, values: Mapping[str, Any], defaults: Mapping[str, Any], place: str) -> None:
        for name, value in values.items():
            key, default = place + name, defaults.get(name)
            if isinstance(default, dict) and isinstance(value, dict):
                self.object(value, self._defaults_of(value, default, key), f"{key}.")
            elif value is not None and default is not None:
                self._value(value, default, key)
        if {"image_size", "patch_size"} <= defaults.keys():
            image_size, patch_size = (values.get(name) or defaults[name] for name in ("image_size", "patch_size"))
            if not 1 <= image_size // patch_size <= _MOST_CELLS:
                self._refuse(image_size, f"{place}image_size", f"1 to {_MOST_CELLS} patches of {patch_size} pixels")

    def _defaults_of(self, value: dict[str, Any], default: dict[str, Any], key: str) -> dict[str, Any]:
        """The defaults of the config that a part says it is."""
        expected, found = default.get("model_type"), value.get("model_type")
        if found in (expected, None):
            return default
        place = "detector_config" if found == LITE_TEXT_TYPE else "backbone_config"
        if not key.endswith(place) or not isinstance(found, str) or found not in self.students:
            self._refuse(found, f"{key}.model_type", repr(expected))
        return _defaults(self.students[found])

    def _value(self, value: Any, default: Any, key: str) -> None:
        name = key.rpartition(".")[2].partition("[")[0]
        if isinstance(default, list | tuple):
            if not isinstance(value, list | tuple) or len(value) > _MOST_LAYERS:
                self._refuse(value, key, "a short list")
            for index, each in enumerate(value if default else ()):
                self._value(each, default[0], f"{key}[{index}]")
        elif isinstance(default, bool | str | dict):
            if not isinstance(value, type(default)):
                self._refuse(value, key, f"of type {type(default).__name__}")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self._refuse(value, key, "a number")
        elif isinstance(default, int):
            least = 1 if _SIZE.fullmatch(name) else -1
            most = _MOST_LAYERS if name.endswith(("layers", "stages")) else _LARGEST
            if not isinstance(value, int) or not least <= value <= most:
                self._refuse(value, key, f"a whole number from {least} to {most}")

    def _refuse(self, value: Any, key: str, expected: str) -> NoReturn:
        raise UserError(f"{self.path} has {repr(value)[:60]} for {key} instead of {expected}: {_REMEDY}.")
