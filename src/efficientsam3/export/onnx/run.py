"""From a model to a directory of ONNX graphs that are known to compute the same."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import efficientsam3
from efficientsam3.export.calibration import EncoderInputs
from efficientsam3.export.graphs import Graph
from efficientsam3.export.onnx.manifest import (
    MANIFEST,
    TOKENIZER,
    GraphFile,
    OnnxManifest,
    TokenizerFile,
    Variant,
    open_graph,
)
from efficientsam3.export.onnx.variants import measure_variant, write_float16, write_int8
from efficientsam3.export.onnx.write import check_file, describe_file, require_packages, write_graph
from efficientsam3.export.parity import Array, Values, check, compare
from efficientsam3.export.source import read_source
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import write_text
from efficientsam3.runtime.own_files import check_folder, own_folder
from efficientsam3.sam3.text import build_tokenizer

_DIRECTORY = "an ONNX directory"
_MOST_IMAGES, _MOST_CALIBRATED = 10, 100


def export_onnx(
    model: Path,
    output: Path,
    *,
    variants: Sequence[Variant] = (),
    calibrate: Path | None = None,
    images: Path | None = None,
    overwrite: bool = False,
) -> OnnxManifest:
    """Write a model's graphs, `model.json` and `tokenizer.json`, each graph compared with PyTorch first.

    Args:
        model: a merged native file, a Hugging Face directory, plain SAM3, or a training's checkpoint, which gives the
            image encoder alone.
        output: the directory to write; one that an earlier export wrote is replaced.
        variants: further precisions of the image encoder: fp16 and int8.
        calibrate: folder of images that their ranges are found on, at most a hundred; int8 needs it.
        images: folder of images to compare on, the first ten are used; None for two made-up ones.
        overwrite: whether to replace files that the program did not write.

    Raises:
        UserError: there is no model, int8 without `calibrate`, a package is missing, `output` holds what the program
            did not write, or a graph differs from PyTorch by more than rounding; then nothing is left behind.
    """
    require_packages()
    check_folder(output, _DIRECTORY, overwrite)
    if "int8" in variants and calibrate is None:
        raise UserError("--variants int8 needs --calibrate DIR: a hundred images like those it will see.")
    if calibrate is not None and not variants:
        raise UserError("--calibrate has no effect without --variants fp16 or int8: name one, or leave it out.")
    source = read_source(model)
    measured_on = EncoderInputs(images, source.preprocessing, _MOST_IMAGES)
    calibrated_on = EncoderInputs(calibrate, source.preprocessing, _MOST_CALIBRATED) if calibrate else measured_on
    with own_folder(output, _DIRECTORY, overwrite) as folder:
        for graph in source.graphs:
            write_graph(graph, folder / f"{graph.name}.onnx")
        runs = {graph.name: partial(run_graph, open_graph(folder / f"{graph.name}.onnx")) for graph in source.graphs}
        measured = compare(source.graphs, runs, measured_on, source.phrases)
        for name, row in measured.items():
            check(f"The ONNX graph {name}", row, "export with the versions in requirements/pinned.txt")
        encoder = source.graphs[0]
        manifest = OnnxManifest(
            source=model.name,
            preprocessing=source.preprocessing,
            tokenizer=None if source.padding is None else _write_tokenizer(folder, *source.padding),
            visual_prompt=source.visual_prompt,
            graphs={g.name: describe_file(g, folder / f"{g.name}.onnx", measured[g.name]) for g in source.graphs},
            variants={v: _write_variant(v, encoder, folder, calibrated_on, measured_on) for v in variants},
            pictures=measured_on.names,
            versions=_versions(),
        )
        write_text(folder / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    return manifest


def run_graph(session: Any, inputs: Values) -> list[Array]:
    """A graph's outputs by ONNX Runtime."""
    outputs: list[Array] = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return outputs


def _write_variant(
    variant: Variant, encoder: Graph, folder: Path, calibrated_on: EncoderInputs, measured_on: EncoderInputs
) -> GraphFile:
    source, target = folder / f"{encoder.name}.onnx", folder / f"{encoder.name}_{variant}.onnx"
    kept = {"fp16": write_float16, "int8": write_int8}[variant](source, target, calibrated_on)
    check_file(target, encoder.name)
    return describe_file(encoder, target, measure_variant(variant, source, target, measured_on), kept)


def _write_tokenizer(folder: Path, context_length: int, pad_id: int) -> TokenizerFile:
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))
    return TokenizerFile(context_length=context_length, pad_id=pad_id)


def _versions() -> dict[str, str]:
    import onnx
    import onnxruntime
    import transformers

    modules = {"torch": torch, "transformers": transformers, "onnx": onnx, "onnxruntime": onnxruntime}
    return {"efficientsam3": efficientsam3.__version__} | {name: each.__version__ for name, each in modules.items()}
