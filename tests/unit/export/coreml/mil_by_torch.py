"""CoreML's programs computed by PyTorch, operation by operation: what a Mac would do, where there is none.

The meaning of each is that of the `value_inference` and the documentation in
coremltools/converters/mil/mil/ops/defs/iOS15. An operation that is not here fails by name.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil.frontend.milproto.load import load as load_program
from torch.nn import functional as F

Inputs = dict[str, Any]
_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


@torch.no_grad()
def run_package(package: Path, pixels: torch.Tensor) -> torch.Tensor:
    """The output of a package, its weights read from the package's own file; float16 is rounded to at each step."""
    spec = ct.utils.load_spec(str(package))
    program = load_program(spec, spec.specificationVersion, str(package / "Data/com.apple.CoreML/weights"))
    function = program.functions["main"]
    values: dict[str, Any] = dict(zip(function.inputs, [pixels], strict=True))
    for operation in function.operations:
        if operation.op_type == "const":
            values[operation.outputs[0].name] = _constant(operation.outputs[0].val)
        else:
            given = {name: _value(values, each) for name, each in operation.inputs.items() if each is not None}
            answer = OPERATIONS[operation.op_type](given)
            answers = answer if isinstance(answer, tuple) else (answer,)
            for output, each in zip(operation.outputs, answers, strict=True):
                assert tuple(each.shape) == tuple(output.shape), operation.name
                values[output.name] = each
    result: torch.Tensor = values[function.outputs[0].name]
    return result


def _constant(value: Any) -> Any:
    return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray | np.floating) else value


def _value(values: dict[str, Any], given: Any) -> Any:
    if isinstance(given, list | tuple):
        return [_value(values, each) for each in given]
    return values[given.name]


def _ints(value: Any) -> list[int]:
    return [int(each) for each in value]


def _conv(i: Inputs) -> torch.Tensor:
    x, weight = i["x"], i["weight"]
    pad = _ints(i.get("pad", [0, 0, 0, 0]))
    kind = i.get("pad_type", "valid")
    assert kind in ("valid", "custom") or (kind == "same" and set(weight.shape[2:]) == {1}), kind
    if kind == "custom":
        x = F.pad(x, (pad[2], pad[3], pad[0], pad[1]))
    strides, dilations = _ints(i.get("strides", [1, 1])), _ints(i.get("dilations", [1, 1]))
    return F.conv2d(x, weight, i.get("bias"), strides, 0, dilations, int(i.get("groups", 1)))


def _upsample(i: Inputs) -> torch.Tensor:
    assert not i["align_corners"]
    x = i["x"]
    factors = float(i["scale_factor_height"]), float(i["scale_factor_width"])
    size = [int(np.floor(length * factor)) for length, factor in zip(x.shape[-2:], factors, strict=True)]
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def _slice(i: Inputs) -> torch.Tensor:
    x, begin, end = i["x"], _ints(i["begin"]), _ints(i["end"])
    none = [False] * x.ndim
    begin_mask, end_mask = i.get("begin_mask", none), i.get("end_mask", none)
    assert not any(i.get("squeeze_mask", none))
    assert set(_ints(i.get("stride", [1] * x.ndim))) == {1}
    cuts = [
        slice(None if free_begin else first, None if free_end else last)
        for first, last, free_begin, free_end in zip(begin, end, begin_mask, end_mask, strict=True)
    ]
    return x[tuple(cuts)]


def _pad(i: Inputs) -> torch.Tensor:
    pads = _ints(i["pad"])
    from_last = [length for axis in range(len(pads), 0, -2) for length in pads[axis - 2 : axis]]  # as PyTorch has them
    return F.pad(i["x"], from_last, i.get("mode", "constant"), float(i.get("constant_val", 0.0)))


def _split(i: Inputs) -> tuple[torch.Tensor, ...]:
    sizes = _ints(i["split_sizes"]) if "split_sizes" in i else i["x"].shape[i["axis"]] // int(i["num_splits"])
    return i["x"].split(sizes, int(i["axis"]))


def _matmul(i: Inputs) -> torch.Tensor:
    x = i["x"].transpose(-1, -2) if i.get("transpose_x") else i["x"]
    y = i["y"].transpose(-1, -2) if i.get("transpose_y") else i["y"]
    return x @ y


def _gelu(i: Inputs) -> torch.Tensor:
    return F.gelu(i["x"], approximate="tanh" if i.get("mode", "EXACT") == "TANH_APPROXIMATION" else "none")


OPERATIONS: dict[str, Callable[[Inputs], Any]] = {
    "add": lambda i: i["x"] + i["y"],
    "batch_norm": lambda i: F.batch_norm(
        i["x"], i["mean"], i["variance"], i.get("gamma"), i.get("beta"), eps=float(i["epsilon"])
    ),
    "cast": lambda i: i["x"].to(_DTYPES[i["dtype"]]),
    "concat": lambda i: torch.cat(i["values"], int(i["axis"])),
    "conv": _conv,
    "gelu": _gelu,
    "layer_norm": lambda i: F.layer_norm(
        i["x"], i["x"].shape[min(_ints(i["axes"])) :], i.get("gamma"), i.get("beta"), float(i["epsilon"])
    ),
    "linear": lambda i: F.linear(i["x"], i["weight"], i.get("bias")),
    "matmul": _matmul,
    "mul": lambda i: i["x"] * i["y"],
    "pad": _pad,
    "real_div": lambda i: i["x"] / i["y"],
    "reduce_mean": lambda i: i["x"].mean(_ints(i["axes"]), keepdim=bool(i["keep_dims"])),
    "relu": lambda i: F.relu(i["x"]),
    "reshape": lambda i: i["x"].reshape(_ints(i["shape"])),
    "sigmoid": lambda i: torch.sigmoid(i["x"]),
    "sigmoid_hard": lambda i: (float(i["alpha"]) * i["x"] + float(i["beta"])).clamp(0, 1),
    "slice_by_index": _slice,
    "softmax": lambda i: i["x"].softmax(int(i["axis"])),
    "split": _split,
    "thresholded_relu": lambda i: torch.where(i["x"] >= float(i["alpha"]), i["x"], torch.zeros_like(i["x"])),
    "transpose": lambda i: i["x"].permute(_ints(i["perm"])),
    "upsample_bilinear": _upsample,
}
