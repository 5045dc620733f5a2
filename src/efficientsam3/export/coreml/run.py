"""A model's image encoder as a CoreML package, for Apple's devices."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import efficientsam3
from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.export.calibration import EncoderInputs
from efficientsam3.export.coreml.program import (
    Program,
    check_package,
    convert_encoder,
    import_coremltools,
)
from efficientsam3.export.coreml.request import Precision
from efficientsam3.export.graphs import Graph
from efficientsam3.export.parity import FEATURE_LIMIT, Run, check, compare
from efficientsam3.export.ports import EMBEDDING, PIXELS, GraphName
from efficientsam3.export.source import read_source
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import atomic_path
from efficientsam3.runtime.own_files import check_folder, own_folder
from efficientsam3.sam3.contents import METADATA_KEY
from efficientsam3.sam3.geometry import Floats

SUFFIX = ".mlpackage"
NOT_COMPARED = "not compared: CoreML runs on macOS alone"
# float16 cost 5e-4 of an EfficientViT-B0's embedding in ONNX Runtime; a sum that overflows costs all of it.
_LIMITS: dict[Precision, float] = {"fp32": FEATURE_LIMIT, "fp16": 1e-2}
_PACKAGE = "a CoreML package"
_MOST_IMAGES = 10
_LICENCE = "SAM3's weights are under Meta's SAM licence; a student's were distilled from SAM3's outputs."


@dataclass(frozen=True)
class CoremlReport:
    """What was written."""

    bytes: int
    operations: int  # without constants and casts
    float32_operations: tuple[str, ...]  # of a float16 program: names of those that stay in float32
    compared: str  # with PyTorch: the figure, or why there is none


def export_coreml(
    model: Path, output: Path, *, precision: Precision = "fp16", images: Path | None = None, overwrite: bool = False
) -> CoremlReport:
    """Write the image encoder as an ML program, read it back, and on macOS compare it with PyTorch.

    Its input `pixels` (1, 3, S, S) and output `embedding` (1, D, G, G) are those of the ONNX graph `image_encoder`,
    float32. How to feed it is in the package's metadata, under "efficientsam3", as JSON.

    Args:
        model: a merged native file, a Hugging Face directory, plain SAM3, or a training's checkpoint.
        output: the package, `*.mlpackage`; one that an earlier export wrote is replaced.
        precision: fp16, except for the operations whose values would overflow, or fp32.
        images: folder whose first ten images it is compared on, and float16's limit watched on; None for two made-up
            ones.
        overwrite: whether to replace files that the program did not write.

    Raises:
        UserError: coremltools or the model is missing, the output exists and is not such a package, the encoder cannot
            be converted, or the package is not what was asked for; then nothing is left behind.
    """
    import_coremltools()
    if output.suffix != SUFFIX:
        raise UserError(f"The output {output} must end in {SUFFIX}, by which Xcode knows a package: rename it.")
    check_folder(output, _PACKAGE, overwrite)
    source = read_source(model)
    graph, preprocessing = source.graphs[0], source.preprocessing
    watched = EncoderInputs(images, preprocessing, _MOST_IMAGES)
    with own_folder(output, _PACKAGE, overwrite) as folder:
        encoder = graph.fused
        program = convert_encoder(encoder, preprocessing.image_size, float16=precision == "fp16", images=watched)
        compared = _compare(program, folder.parent, graph, watched, precision)
        _describe(program, model.name, preprocessing, precision, compared, watched.names)
        package = folder.parent / f"written{SUFFIX}"
        program.model.save(str(package))
        check_package(package, graph.ports, program)
        _publish(package, folder)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    return CoremlReport(size, len(program.operations), program.kept_names, compared)


def _publish(package: Path, folder: Path) -> None:
    """Copy a package rather than move it: coremltools makes some files and folders readable by their owner alone."""
    for file in package.rglob("*"):
        if file.is_file():
            with atomic_path(folder / file.relative_to(package)) as copy:
                shutil.copyfile(file, copy)


def _compare(program: Program, scratch: Path, graph: Graph, images: EncoderInputs, precision: Precision) -> str:
    """The worst relative error of the embedding against PyTorch, in words.

    Raises:
        UserError: the error is more than rounding.
    """
    if sys.platform != "darwin":
        return NOT_COMPARED
    package = scratch / f"compared{SUFFIX}"
    program.model.save(str(package))
    run = open_package(package)
    runs: dict[GraphName, Run] = {graph.name: lambda values: [run(values[PIXELS].numpy())]}
    measured = compare([graph], runs, images, [])[graph.name]
    remedy = "export with --precision fp32 or the versions in requirements/pinned.txt"
    check("The CoreML program", measured, remedy, _LIMITS[precision])
    return f"relative error {measured['relative_error']:.2g}"


def open_package(package: Path) -> Callable[[Floats], Floats]:
    """A function that computes a package on this Mac's CPU: pixels (1, 3, S, S) to the embedding (1, D, G, G)."""
    ct = import_coremltools()
    model = ct.models.MLModel(str(package), compute_units=ct.ComputeUnit.CPU_ONLY)

    def run(pixels: Floats) -> Floats:
        embedding: Floats = model.predict({PIXELS: pixels})[EMBEDDING]
        return embedding

    return run


def _describe(
    program: Program,
    source: str,
    preprocessing: Preprocessing,
    precision: Precision,
    compared: str,
    images: tuple[str, ...],
) -> None:
    """Add the metadata that an app needs and Xcode shows."""
    import coremltools

    described: dict[str, Any] = {
        "format_version": 1,
        "source": source,
        "preprocessing": preprocessing.model_dump(mode="json"),
        "precision": precision,
        "float32_operations": program.kept_names,
        "compared": compared,
        "pictures": images,
        "versions": {
            "efficientsam3": efficientsam3.__version__,
            "torch": torch.__version__,
            "coremltools": coremltools.__version__,
        },
    }
    program.model.short_description = f"Image encoder of {source}: pixels to SAM3's embedding."
    program.model.author = "efficientsam3"
    program.model.license = _LICENCE
    program.model.version = efficientsam3.__version__
    program.model.user_defined_metadata[METADATA_KEY] = json.dumps(described)
    pixels = f"RGB in [0, 1], less the mean, by the deviation; {preprocessing.resize}, see the metadata"
    program.model.input_description[PIXELS] = pixels
    program.model.output_description[EMBEDDING] = "(1, channels, cells, cells)"
