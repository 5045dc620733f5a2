import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Sam3VideoConfig

from efficientsam3.checkpoints.hf_config import parse_hf_config
from efficientsam3.runtime.errors import UserError

DEFAULT: dict[str, Any] = json.loads(Sam3VideoConfig().to_json_string(use_diff=False))


def _places(values: Any, place: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(values, dict):
        return [place]
    return [place, *(found for key, value in values.items() for found in _places(value, (*place, key)))]


PLACES = _places(DEFAULT)[1:]


def changed(place: tuple[str, ...], value: Any) -> dict[str, Any]:
    values = copy.deepcopy(DEFAULT)
    inner = values
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return values


def test_transformers_own_config_is_read() -> None:
    found = parse_hf_config(Sam3VideoConfig, DEFAULT, Path("sam3"))
    assert json.loads(found.to_json_string(use_diff=False)) == DEFAULT


@settings(deadline=None)
@given(
    place=st.sampled_from(PLACES),
    value=st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just([]) | st.just({}),
)
def test_any_value_anywhere_is_read_or_refused_in_a_sentence(place: tuple[str, ...], value: Any) -> None:
    try:
        parse_hf_config(Sam3VideoConfig, changed(place, value), Path("sam3"))
    except UserError as error:
        assert "sam3/config.json" in str(error)  # noqa: PT017, either is right


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("detector_config", []),
        ("detector_config.text_config.num_hidden_layers", 10**7),
        ("detector_config.text_config.hidden_size", "1024"),
        ("detector_config.vision_config.backbone_config.image_size", 10**9),
        ("detector_config.vision_config.backbone_config.patch_size", 0),
        ("detector_config.vision_config.backbone_config.model_type", "bert"),
        ("detector_config.vision_config.backbone_feature_sizes", [[288, 288], [144, "x"]]),
        ("tracker_config.memory_attention_dropout", float("nan")),
        ("low_res_mask_size", True),
    ],
)
def test_wrong_types_zeros_and_giants_are_refused_by_key(place: str, value: Any) -> None:
    with pytest.raises(UserError, match=place.replace(".", r"\.")):
        parse_hf_config(Sam3VideoConfig, changed(tuple(place.split(".")), value), Path("sam3"))
