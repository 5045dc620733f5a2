"""From a PyTorch image encoder to a CoreML ML program, by coremltools, and reading back what was written."""

import importlib.util
import logging
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from efficientsam3.export.float16 import LINEAR_ATTENTION_CLASS, large_modules
from efficientsam3.export.ports import EMBEDDING, PIXELS, Port
from efficientsam3.runtime.errors import UserError

# Operations of linear attention that sum over all cells.
_SUMS = frozenset({"matmul", "add", "slice_by_index", "real_div"})
_NOT_COMPUTED = frozenset({"const", "cast"})


class Operation(NamedTuple):
    """A step of a program."""

    name: str
    kind: str
    float32: bool


@dataclass(frozen=True)
class Program:
    """A converted encoder."""

    model: Any  # coremltools' MLModel, not loaded
    operations: tuple[Operation, ...]
    kept: Counter[str]  # kinds of the operations that must be in float32

    @property
    def kept_names(self) -> tuple[str, ...]:
        """Names of the operations that are in float32 though others are not."""
        return tuple(operation.name for operation in self.operations if operation.float32) if self.kept else ()


def import_coremltools() -> Any:
    """Import coremltools, without its warnings about untested versions: what it writes is checked instead.

    Raises:
        UserError: coremltools is not installed.
    """
    if importlib.util.find_spec("coremltools") is None:
        raise UserError("Exporting to CoreML needs coremltools: run pip install 'efficientsam3[coreml]'.")
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    import coremltools

    return coremltools


def convert_encoder(encoder: nn.Module, image_size: int, *, float16: bool, images: Iterable[torch.Tensor]) -> Program:
    """Convert an encoder of one image, (1, 3, S, S) to (1, D, G, G), both float32.

    By tracing: the program keeps the names of the modules, by which operations are kept in float32. For iOS 15 and
    macOS 12, the first that run ML programs: no operation of the encoders needs later ones.

    Args:
        encoder: in eval mode, on the CPU.
        image_size: S.
        float16: compute in float16, except for linear attention and modules whose values come near float16's limit.
        images: (1, 3, S, S) that this limit is watched on.

    Raises:
        UserError: coremltools cannot convert one of the encoder's operations.
    """
    ct = import_coremltools()
    _replace_int_conversion()
    kept: Counter[str] = Counter()
    precision = ct.precision.FLOAT32
    if float16:
        large = large_modules(encoder, images)
        precision = ct.transform.FP16ComputePrecision(op_selector=partial(_fits_float16, large, kept))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # about traced Python branches and small numbers rounded to 0
        traced = torch.jit.trace(encoder, torch.zeros(1, 3, image_size, image_size))  # type: ignore[no-untyped-call]
        try:
            model = ct.convert(
                traced,
                inputs=[ct.TensorType(PIXELS, (1, 3, image_size, image_size), dtype=np.float32)],
                outputs=[ct.TensorType(EMBEDDING, dtype=np.float32)],
                convert_to="mlprogram",
                compute_precision=precision,
                minimum_deployment_target=ct.target.iOS15,
                skip_model_load=True,
            )
        except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"coremltools {ct.__version__} cannot convert this image encoder ({reason}): export one of the nine "
                "students, or to ONNX."
            ) from error
    attentions = sum(type(module).__name__ == LINEAR_ATTENTION_CLASS for module in encoder.modules())
    if float16 and kept["matmul"] < 2 * attentions:
        raise UserError(
            f"coremltools {ct.__version__} hides which operations are EfficientViT's linear attention, which overflows "
            "float16: give --precision fp32."
        )
    return Program(model, _operations(model.get_spec()), kept)


def _replace_int_conversion() -> None:
    """Replace coremltools 9.0's conversion of `aten::Int`, which calls int() on arrays: NumPy 2.4 refuses that."""
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.frontend.torch.torch_op_registry import register_torch_op

    def to_int(context: Any, node: Any) -> None:
        length = context[node.inputs[0]].val
        if length is None:
            raise NotImplementedError(f"{node.name} depends on the image")
        context.add(Builder.const(val=int(np.asarray(length).item()), name=node.name))

    register_torch_op(to_int, torch_alias=["int"], override=True)


def _fits_float16(large: frozenset[str], kept: Counter[str], operation: Any) -> bool:
    """Whether an operation may be computed in float16; counts those that may not."""
    scopes = {source.name: scope for source, scope in operation.scopes.items()}
    # The last of each is the operation's own.
    modules = scopes.get("TORCHSCRIPT_MODULE_NAME", [])[:-1]
    kinds = scopes.get("TORCHSCRIPT_MODULE_TYPE", [])[:-1]
    in_attention = kinds[-1:] == [LINEAR_ATTENTION_CLASS] and operation.op_type in _SUMS
    if operation.op_type in _NOT_COMPUTED or not (in_attention or ".".join(modules) in large):
        return True
    kept[operation.op_type] += 1
    return False


def check_package(package: Path, ports: tuple[tuple[Port, ...], tuple[Port, ...]], program: Program) -> None:
    """Read a written package back and compare what it declares with what was asked for.

    Args:
        package: the `.mlpackage`.
        ports: inputs and outputs of the graph that it stands for; its batch is 1.
        program: what was written.

    Raises:
        UserError: names, shapes, types or operations differ.
    """
    ct = import_coremltools()
    spec = ct.utils.load_spec(str(package))
    expected = [(port.name, (1, *port.shape[1:]), port.dtype) for each in ports for port in each]
    found = [_port(port) for port in (*spec.description.input, *spec.description.output)]
    operations = _operations(spec)
    in_float32 = Counter(operation.kind for operation in operations if operation.float32)
    lost = program.kept - in_float32
    if found != expected or not operations or operations != program.operations or lost:
        raise UserError(
            f"The CoreML program does not declare what was asked for ({found}, {len(operations)} operations, "
            f"{lost.total()} not in float32 that should be): install the versions in requirements/pinned.txt."
        )


def _operations(spec: Any) -> tuple[Operation, ...]:
    from coremltools.proto.MIL_pb2 import FLOAT32

    function = spec.mlProgram.functions["main"]
    outputs = [(op.outputs[0], op.type) for op in function.block_specializations[function.opset].operations]
    return tuple(
        Operation(output.name, kind, output.type.tensorType.dataType == FLOAT32)
        for output, kind in outputs
        if kind not in _NOT_COMPUTED
    )


def _port(port: Any) -> tuple[str, tuple[int, ...], str]:
    from coremltools.proto.FeatureTypes_pb2 import ArrayFeatureType

    array = port.type.multiArrayType
    is_float32 = array.dataType == ArrayFeatureType.FLOAT32
    return port.name, tuple(array.shape), "float" if is_float32 else ArrayFeatureType.ArrayDataType.Name(array.dataType)
