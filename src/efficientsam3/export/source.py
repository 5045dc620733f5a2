"""The model that is exported: its parts as graphs, and phrases to compare them on."""

from dataclasses import dataclass
from pathlib import Path

import torch

from efficientsam3.checkpoints.necks import read_trained_necks
from efficientsam3.checkpoints.training import is_training_checkpoint
from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.export.graphs import Graph, build_graphs, student_graph
from efficientsam3.export.parity import Values
from efficientsam3.models.student_files import load_student_and_preprocessing
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.build import Models, build_models
from efficientsam3.sam3.contents import Contents, read_contents
from efficientsam3.sam3.parts import VISUAL_PROMPT
from efficientsam3.sam3.text import build_tokenizer, padding_of, tokenize

_PHRASES = ("a dog", VISUAL_PROMPT)
VisualPrompt = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Source:
    """A model on the CPU, taken apart."""

    graphs: list[Graph]  # in the order in which they run
    preprocessing: Preprocessing
    phrases: list[Values]  # inputs for the first graph that takes text
    padding: tuple[int, int] | None  # of the text encoder, see `padding_of`; None without one
    visual_prompt: VisualPrompt | None  # features of "visual", where there is a detector but no text encoder


def read_source(model: Path) -> Source:
    """Open a merged file, a Hugging Face directory, plain SAM3, or a training's checkpoint: its student alone.

    Raises:
        UserError: `model` is not one of these, or is broken, or is a student that needs the necks trained with it.
    """
    if not model.exists():
        raise UserError(
            f"Model {model} does not exist: give a merged .pt file, sam3.pt, a Hugging Face directory, or a training's "
            "ckpt_epoch_N.pth."
        )
    if is_training_checkpoint(model):
        if read_trained_necks(model) is not None:
            raise UserError(
                f"{model} was trained together with SAM3's necks, which an image encoder alone would leave behind: "
                "merge it, and export the merged model."
            )
        student, preprocessing = load_student_and_preprocessing(model)
        return Source([student_graph(student)], preprocessing, [], None, visual_prompt=None)
    contents = read_contents(model)
    models = build_models(contents)
    has_text = models.detector is not None and models.detector.text_encoder is not None
    phrases = _phrases(models, contents, has_text)
    visual_prompt = None if models.detector is None or has_text else _features(phrases[0])
    graphs = build_graphs(models, contents.preprocessing.image_size)
    padding = padding_of(models.detector.config.text_config) if has_text else None
    return Source(graphs, contents.preprocessing, phrases, padding, visual_prompt)


def _phrases(models: Models, contents: Contents, has_text: bool) -> list[Values]:
    if has_text:
        tokenizer = build_tokenizer()
        config, names = models.detector.config.text_config, ("input_ids", "text_mask")
        return [dict(zip(names, tokenize(tokenizer, text, config), strict=True)) for text in _PHRASES]
    if models.detector is None:
        return []
    if contents.visual_prompt is None:
        raise UserError(f"{contents.path} has neither a text encoder nor the visual prompt's features: merge it again.")
    features = contents.visual_prompt[None].float()
    return [{"text_features": features, "text_mask": torch.ones(features.shape[:2], dtype=torch.long)}]


def _features(phrase: Values) -> VisualPrompt:
    return tuple(tuple(row) for row in phrase["text_features"][0].tolist())
