"""Opening ONNX models."""

import sys
from pathlib import Path
from typing import Any

from efficientsam3.runtime.environment import thread_count
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import require_file


def open_onnx(path: Path, what: str, remedy: str) -> Any:
    """An onnxruntime session on the CPU. PyTorch is not needed, see `_threads`.

    Args:
        path: the model.
        what: what it should be, such as "ONNX teacher".
        remedy: ends the error's sentence.

    Raises:
        UserError: the file is missing or not an ONNX model, or onnxruntime is not installed.
    """
    require_file(path, what, remedy)
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"{what} {path} needs onnxruntime: pip install 'efficientsam3[onnx]'.") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads()
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the only base class that onnxruntime's exceptions share
        raise UserError(f"{what} {path} cannot be opened ({error}): {remedy}.") from error


def _threads() -> int:
    """PyTorch's number of threads where it is loaded, else OMP_NUM_THREADS, else 0, which lets onnxruntime choose.

    Several processes share the machine's cores: this is the share that torchrun or the user gave this one.
    """
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else thread_count()
