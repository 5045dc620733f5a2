"""Opening ONNX models."""

from pathlib import Path
from typing import Any

import torch

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import require_file


def open_onnx(path: Path, what: str, remedy: str) -> Any:
    """An onnxruntime session on the CPU, with as many threads as PyTorch has.

    Args:
        path: the model.
        what: what it should be, such as "ONNX teacher".
        remedy: ends the error's sentence.

    Raises:
        UserError: there is no such file, it is no ONNX model, or onnxruntime is not installed.
    """
    require_file(path, what, remedy)
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"{what} {path} needs onnxruntime: pip install 'efficientsam3[stage1]'.") from error
    options = onnxruntime.SessionOptions()
    # Several processes share the machine's cores: follow the share that torchrun or the user gave this one.
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class but this
        raise UserError(f"{what} {path} cannot be opened ({error}): {remedy}.") from error
