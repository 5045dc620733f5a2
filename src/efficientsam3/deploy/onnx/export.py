"""From a model to a directory of ONNX graphs that are known to compute the same."""

from collections.abc import Sequence
from pathlib import Path

import torch

import efficientsam3
from efficientsam3.deploy.build import Models, build_models
from efficientsam3.deploy.contents import Contents, read_contents
from efficientsam3.deploy.onnx.compare import Values, compare
from efficientsam3.deploy.onnx.graphs import Graph, build_graphs
from efficientsam3.deploy.onnx.manifest import MANIFEST, TOKENIZER, GraphFile, Manifest, TokenizerFile, Variant
from efficientsam3.deploy.onnx.pictures import Pictures
from efficientsam3.deploy.onnx.variants import measure_variant, write_fp16, write_int8
from efficientsam3.deploy.onnx.write import check_file, describe_file, require_packages, write_graph
from efficientsam3.deploy.parts import VISUAL_PROMPT
from efficientsam3.deploy.tokenizer import CONTEXT_LENGTH, build_tokenizer, tokenize
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import atomic_directory, write_text

_PHRASES = ("a dog", VISUAL_PROMPT)
_MOST_PICTURES, _MOST_CALIBRATED = 10, 100


def export_onnx(
    model: Path,
    output: Path,
    *,
    variants: Sequence[Variant] = (),
    calibrate: Path | None = None,
    pictures: Path | None = None,
) -> Manifest:
    """Write a model's graphs, `model.json` and `tokenizer.json`, each graph compared with PyTorch before.

    Args:
        model: a merged native file, a Hugging Face directory, or plain SAM3.
        output: the directory to write; one that an earlier export wrote is replaced.
        variants: fp16 and int8: other precisions of the image encoder, to have beside the float32 one.
        calibrate: folder of pictures that their ranges are found on, at most a hundred; int8 needs it.
        pictures: folder of pictures to compare on, the first ten are used; None for two made-up ones.

    Raises:
        UserError: there is no model, int8 without `calibrate`, a package is missing, or a graph differs from PyTorch by
            more than rounding; then nothing is left behind.
    """
    require_packages()
    if "int8" in variants and calibrate is None:
        raise UserError("--variants int8 needs --calibrate DIR: a hundred pictures like those it will see.")
    if calibrate is not None and not variants:
        raise UserError("--calibrate is of --variants fp16 and int8: name one, or leave it out.")
    if not model.exists():
        raise UserError(f"Model {model} does not exist: give a merged .pt file, sam3.pt, or a Hugging Face directory.")
    contents = read_contents(model)
    measured_on = Pictures(pictures, contents.preprocessing, _MOST_PICTURES)
    calibrated_on = Pictures(calibrate, contents.preprocessing, _MOST_CALIBRATED) if calibrate else measured_on
    with atomic_directory(output, MANIFEST, "directory of ONNX graphs") as folder:
        models = build_models(contents)
        phrases = _phrases(models, contents)
        graphs = build_graphs(models, contents.preprocessing.image_size)
        for graph in graphs:
            write_graph(graph, folder / f"{graph.name}.onnx")
        measured = compare(graphs, folder, measured_on, phrases)
        manifest = Manifest(
            source=model.name,
            preprocessing=contents.preprocessing,
            tokenizer=_write_tokenizer(folder) if _has_text(models) else None,
            visual_prompt=_visual_prompt(models, phrases),
            graphs={g.name: describe_file(g, folder / f"{g.name}.onnx", measured[g.name]) for g in graphs},
            variants={v: _write_variant(v, graphs[0], folder, calibrated_on, measured_on) for v in variants},
            pictures=measured_on.names,
            versions=_versions(),
        )
        write_text(folder / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    return manifest


def _write_variant(
    variant: Variant, encoder: Graph, folder: Path, calibrated_on: Pictures, measured_on: Pictures
) -> GraphFile:
    source, target = folder / f"{encoder.name}.onnx", folder / f"{encoder.name}_{variant}.onnx"
    kept = {"fp16": write_fp16, "int8": write_int8}[variant](source, target, calibrated_on)
    check_file(target, encoder.name)
    return describe_file(encoder, target, measure_variant(variant, source, target, measured_on), kept)


def _has_text(models: Models) -> bool:
    return models.detector is not None and models.detector.text_encoder is not None


def _phrases(models: Models, contents: Contents) -> list[Values]:
    """What the first graph that takes text is asked."""
    if _has_text(models):
        tokenizer = build_tokenizer()
        return [dict(zip(("input_ids", "text_mask"), tokenize(tokenizer, text), strict=True)) for text in _PHRASES]
    if models.detector is None:
        return []
    if contents.visual_prompt is None:
        raise UserError(f"{contents.path} has neither a text encoder nor the visual prompt's features: merge it again.")
    features = contents.visual_prompt[None].float()
    return [{"text_features": features, "text_mask": torch.ones(features.shape[:2], dtype=torch.long)}]


def _visual_prompt(models: Models, phrases: list[Values]) -> tuple[tuple[float, ...], ...] | None:
    if models.detector is None or _has_text(models):
        return None
    return tuple(tuple(row) for row in phrases[0]["text_features"][0].tolist())


def _write_tokenizer(folder: Path) -> TokenizerFile:
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))
    return TokenizerFile(context_length=CONTEXT_LENGTH, pad_id=tokenizer.pad_token_id)


def _versions() -> dict[str, str]:
    import onnx
    import onnxruntime
    import transformers

    modules = {"torch": torch, "transformers": transformers, "onnx": onnx, "onnxruntime": onnxruntime}
    return {"efficientsam3": efficientsam3.__version__} | {name: each.__version__ for name, each in modules.items()}
