from pathlib import Path

import pytest
import torch

from efficientsam3.checkpoints.fitting import check_finite, differences, is_finite, layouts
from efficientsam3.checkpoints.reading import check_tensors
from efficientsam3.runtime.errors import UserError

EXPECTED = {"weight": torch.ones(3), "count": torch.tensor(1)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"weight": torch.ones(3, dtype=torch.float16)}, ""),
        ({"weight": torch.ones(3, dtype=torch.int8)}, "1 with other numbers, such as weight integer instead of float"),
        ({"weight": torch.ones(3, dtype=torch.complex64)}, "weight complex instead of floating-point"),
        ({"count": torch.tensor(1.0)}, "count floating-point instead of integer"),
        ({"weight": torch.ones(2)}, r"1 of another shape, such as weight \(2,\) instead of \(3,\)"),
        ({"other": torch.ones(2)}, "1 unexpected, such as other"),
    ],
)
def test_differences_name_an_example(change: dict[str, torch.Tensor], words: str) -> None:
    found = differences(layouts(EXPECTED | change), layouts(EXPECTED))
    assert bool(found) == bool(words)
    if words:
        with pytest.raises(ValueError, match=words):
            raise ValueError(found)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.ones(3, device="meta"), "meta device"),
        (torch.ones(3).to_sparse(), "sparse"),
        (torch.ones(3, 0), "empty"),
        (torch.zeros(1).expand(10**9), "more than the file"),
        (torch.ones(3).to(torch.float8_e4m3fn), "dtype torch.float8_e4m3fn"),
    ],
)
def test_tensors_of_no_state_dict_are_refused_by_name(tensor: torch.Tensor, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(bytes(100))
    with pytest.raises(UserError, match=rf"layer\.weight in .*x\.pt .*{words}"):
        check_tensors({"fine": torch.ones(4), "layer.weight": tensor}, path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_is_enough(dtype: torch.dtype, value: float) -> None:
    tensor = torch.zeros(3, 7, dtype=dtype)
    assert is_finite(tensor)
    assert is_finite(tensor[:0])
    tensor[1, 4] = value
    assert not is_finite(tensor)
    assert not is_finite(tensor[1, 4])


def test_values_that_are_not_finite_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"layer\.weight in x\.pt has values that are not finite"):
        check_finite({"fine": torch.ones(4), "layer.weight": torch.tensor([1, float("nan")])}, Path("x.pt"))
