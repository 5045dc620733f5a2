"""Prompting an ONNX directory: the same calls and answers as `EfficientSAM3`, in arrays, without PyTorch."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.export.onnx.manifest import MANIFEST, OnnxManifest, Variant, open_exported, read_onnx_manifest
from efficientsam3.export.ports import DETECTOR_LEVELS, TRACKER_LEVELS, GraphName
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.geometry import Floats, Placement, boxes_of_masks
from efficientsam3.sam3.parts import VISUAL_PROMPT
from efficientsam3.sam3.promptable import PADDING_LABEL, Pixels, Promptable, Segmentation, finite, ranked, to_pixels
from efficientsam3.sam3.prompts import ConceptPrompt, ObjectPrompt, pad_phrase

Arrays = dict[str, Any]


class OnnxSAM3:
    """What `export-onnx` wrote, ready to be prompted by ONNX Runtime on the CPU; a graph is opened when needed."""

    def __init__(self, directory: Path, manifest: OnnxManifest, variant: Variant | None = None) -> None:
        """Take a directory and what its `model.json` says.

        Raises:
            UserError: the image encoder has no such variant.
        """
        if variant is not None and variant not in manifest.variants:
            raise UserError(
                f"{directory} has no {variant} image encoder: export it again with --variants {variant}, or leave "
                "--variant out."
            )
        self.preprocessing: Preprocessing = manifest.preprocessing
        self._directory = directory
        self._manifest = manifest
        self._variant = variant
        self._sessions: dict[str, Any] = {}
        self._texts: dict[str, Arrays] = {}

    @classmethod
    def from_pretrained(cls, path: str | Path, variant: Variant | None = None) -> "OnnxSAM3":
        """Open a directory that `export-onnx` wrote.

        Args:
            path: the directory.
            variant: of the image encoder, as --variants of the export wrote it; None for float32.

        Raises:
            UserError: it is not such a directory, or has no such variant.
        """
        return cls(Path(path), read_onnx_manifest(Path(path)), variant)

    def encode(self, image: str | Path | Image.Image | Pixels) -> "OnnxEncodedImage":
        """Run the image encoder once; the result answers any number of prompts.

        Args:
            image: a path, a PIL image, or (H, W, 3) uint8 RGB.

        Raises:
            UserError: the image cannot be read, or is not RGB of 8 bits.
        """
        pixels = to_pixels(image)
        embedding = self.run("image_encoder", {"pixels": to_input(pixels, self.preprocessing)})
        finite(embedding["embedding"], "an embedding")
        return OnnxEncodedImage(self, Placement.of(pixels.shape[0], pixels.shape[1], self.preprocessing), embedding)

    def text_features(self, text: str) -> Arrays:
        """`text_features` (1, L, width) and `text_mask` (1, L) of a phrase, computed once per phrase.

        Raises:
            UserError: the model has no text encoder, or the phrase is empty or too long.
        """
        if text not in self._texts:
            self._texts[text] = self._encode_text(text)
        return self._texts[text]

    def _encode_text(self, text: str) -> Arrays:
        described = self._manifest.tokenizer
        if described is None:
            if text != VISUAL_PROMPT or self._manifest.visual_prompt is None:
                raise UserError(f"{self._directory} has no text encoder: export a model merged with --keep image,text.")
            features = np.array([self._manifest.visual_prompt], dtype=np.float32)
            return {"text_features": features, "text_mask": np.ones(features.shape[:2], dtype=np.int64)}
        ids, mask = pad_phrase(text, self._tokenizer.encode(text).ids, described.context_length, described.pad_id)
        return self.run("text_encoder", {"input_ids": ids, "text_mask": mask}) | {"text_mask": mask}

    @cached_property
    def _tokenizer(self) -> Any:
        assert self._manifest.tokenizer is not None
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise UserError("Text prompts need tokenizers: run pip install tokenizers.") from error
        path = self._directory / self._manifest.tokenizer.file
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # all that the tokenizers' parser raises
            raise UserError(f"Tokenizer {path} cannot be read ({error}): export the model again.") from error

    def run(self, name: GraphName, inputs: Arrays) -> Arrays:
        """Run a graph: named inputs to named outputs.

        Raises:
            UserError: the model was merged without that part, or the graph's file is missing or broken.
        """
        if name not in self._manifest.graphs:
            part = "tracker" if name.startswith("interactive") else "detector"
            raise UserError(f"{self._directory} has no {part}: export a model that was merged with it.")
        graph = self._manifest.graphs[name]
        if name not in self._sessions:
            file = self._manifest.variants[self._variant] if self._variant and name == "image_encoder" else graph
            self._sessions[name] = open_exported(self._directory, file)
        outputs = [port.name for port in graph.outputs]
        try:
            return dict(zip(outputs, self._sessions[name].run(outputs, inputs), strict=True))
        except Exception as error:  # the only base class that onnxruntime's exceptions share
            raise UserError(
                f"ONNX graph {name} of {self._directory} does not take what its {MANIFEST} says ({error}): export the "
                "model again."
            ) from error


class OnnxEncodedImage(Promptable[Any]):
    """An image whose embedding is computed; `segment` answers with arrays."""

    def __init__(self, model: OnnxSAM3, placement: Placement, embedding: Arrays) -> None:
        """Made by `OnnxSAM3.encode`."""
        super().__init__(placement)
        self._model, self._values = model, embedding

    @property
    def embedding(self) -> Floats:
        """(1, D, G, G)."""
        embedding: Floats = self._values["embedding"]
        return embedding

    def _levels(self, neck: GraphName, names: Sequence[str]) -> Arrays:
        """A neck's levels of the embedding, computed once."""
        if names[0] not in self._values:
            self._values |= self._model.run(neck, {"embedding": self.embedding})
        return {name: self._values[name] for name in names}

    def _detect(self, prompt: ConceptPrompt, threshold: float) -> Segmentation[Any]:
        levels = self._levels("detector_neck", DETECTOR_LEVELS)
        examples, labels = self._placement.boxes_to_input(prompt.boxes), prompt.labels
        if not prompt.boxes:  # see `ask_detector`
            examples, labels = np.zeros((1, 4), dtype=np.float32), (PADDING_LABEL,)
        given = {"boxes": examples[None], "box_labels": np.array([labels], dtype=np.int64)}
        answer = self._model.run("detector", {**levels, **self._model.text_features(prompt.phrase), **given})
        kept = ranked(finite(answer["scores"][0], "scores"), threshold)
        masks = self._placement.masks_to_image(finite(answer["mask_logits"][0, kept], "masks"))
        return Segmentation(
            masks, self._placement.boxes_to_image(answer["pred_boxes"][0, kept]), answer["scores"][0, kept]
        )

    def _track(self, prompt: ObjectPrompt, candidates: bool, max_hole_area: int) -> Segmentation[Any]:
        if prompt.mask is not None:
            raise UserError("Exported graphs take no mask to refine: give points and a box, or the merged model.")
        levels = self._levels("interactive_neck", TRACKER_LEVELS)
        points, labels = self._placement.object_to_input(prompt)
        given = {"points": points[None], "labels": np.array([labels], dtype=np.int64)}
        answer = self._model.run("interactive", {**levels, **given})
        order = ranked(finite(answer["iou_scores"][0], "scores"))[: None if candidates else 1]
        masks = self._placement.masks_to_image(finite(answer["mask_logits"][0, order], "masks"), max_hole_area)
        return Segmentation(masks, boxes_of_masks(masks), answer["iou_scores"][0, order].clip(0, 1))


def to_input(pixels: Pixels, preprocessing: Preprocessing) -> Floats:
    """`resize_image` and `normalise` by Pillow and NumPy: (H, W, 3) uint8 to (1, 3, S, S) float32.

    The resized pixels are at most one grey level from PyTorch's, which rounds differently.
    """
    height, width = preprocessing.content_size(*pixels.shape[:2])
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    mean, std = (np.array(values, dtype=np.float32) for values in (preprocessing.mean, preprocessing.std))
    normalised: Floats = (np.asarray(resized, dtype=np.float32) / np.float32(255) - mean) / std  # [h, w, 3]
    side = preprocessing.image_size
    padded = np.zeros((side, side, 3), dtype=np.float32)
    padded[:height, :width] = normalised
    return np.ascontiguousarray(padded.transpose(2, 0, 1))[None]
