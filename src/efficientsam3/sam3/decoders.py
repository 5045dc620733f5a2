"""Frozen mask decoders that turn any encoder's embedding into masks: SAM's as ONNX, or SAM3's tracker."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import nn

from efficientsam3.data.preprocess import Preprocessing, sam3_preprocessing, sam_preprocessing
from efficientsam3.models.onnx_session import open_onnx
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.build import build_tracker
from efficientsam3.sam3.contents import read_contents
from efficientsam3.sam3.geometry import Floats, Placement
from efficientsam3.sam3.holes import MAX_HOLE_AREA
from efficientsam3.sam3.prompts import ObjectPrompt
from efficientsam3.sam3.torch_calls import masks_to_image, track_object, tracker_features

# SAM's ONNX export: https://github.com/facebookresearch/segment-anything/blob/main/segment_anything/utils/onnx.py
_INPUTS = {"image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size"}
_OUTPUTS = ["iou_predictions", "low_res_masks"]
_PADDING_LABEL = -1
_CELL = 16  # pixels of the input for each cell of a SAM embedding
_REMEDY = "give SAM's prompt encoder and mask decoder as .onnx, or a SAM3"


@dataclass(frozen=True)
class Answer:
    """Masks found for a prompt, the model's best first; one for an `ObjectPrompt`."""

    masks: torch.Tensor  # (N, H, W) bool, on the CPU
    scores: torch.Tensor  # (N,) predicted IoU (box, points) or probability (text), on the CPU
    # The best mask's logits (h, w) over the input, which `ObjectPrompt.mask` takes; None where the model takes none.
    logits: torch.Tensor | None = None
    presence: float | None = None  # probability that the phrase is in the image at all, where the model says so


class MaskDecoder(Protocol):
    """What is left of a model without its image encoder's trunk, in two steps."""

    def features(self, embedding: torch.Tensor) -> list[torch.Tensor]:
        """What masks are decoded from: SAM's embedding itself, or the levels of SAM3's neck, finest first."""
        ...

    def decode(self, features: list[torch.Tensor], placement: Placement) -> Callable[[ObjectPrompt], Answer]:
        """`Decoder.open` for features that are computed."""
        ...


class TakesEmbeddings(Protocol):
    """What takes the embeddings of an image encoder."""

    embed_dim: int  # channels of the embeddings that it takes
    embed_size: int  # cells per side of these embeddings
    preprocessing: Preprocessing  # of the image encoder that it was trained with


def check_fits(model: str, shape: tuple[int, int], preprocessing: Preprocessing, decoder: TakesEmbeddings) -> None:
    """Refuse embeddings of another shape, or at another image size, than a decoder takes.

    Raises:
        UserError: the shapes or image sizes differ.
    """
    found = (*shape, preprocessing.image_size)
    wanted = (decoder.embed_dim, decoder.embed_size, decoder.preprocessing.image_size)
    if found != wanted:
        raise UserError(
            f"{model} gives embeddings of {found[0]} channels on {found[1]}x{found[1]} cells at {found[2]} pixels, the "
            f"decoder takes {wanted[0]} on {wanted[1]}x{wanted[1]} at {wanted[2]}: give the decoder of its teacher."
        )


class Decoder(TakesEmbeddings, MaskDecoder, Protocol):
    """A frozen prompt encoder and mask decoder, without an image encoder."""

    def open(self, embedding: torch.Tensor, placement: Placement) -> Callable[[ObjectPrompt], Answer]:
        """Prepare one image for any number of prompts.

        Args:
            embedding: (1, embed_dim, embed_size, embed_size) of any float type, on any device.
            placement: where the image lies in the encoder's input.

        Returns:
            from a prompt in pixels of the image to one mask (1, H, W) of its size and the mask's score (1,).
        """
        ...


class OnnxDecoder:
    """SAM's prompt encoder and mask decoder as one ONNX model.

    Masks are taken at low resolution and resized to the image here: that equals the model's own `masks` for its own
    preprocessing, and is also right for squashed images, which the model does not know.
    """

    def __init__(self, path: Path) -> None:
        """Open the model.

        Raises:
            UserError: `path` is not an ONNX model, or its inputs and outputs are not those of SAM's export.
        """
        session = open_onnx(path, "Mask decoder", _REMEDY)
        inputs = {value.name: list(value.shape) for value in session.get_inputs()}
        outputs = {value.name for value in session.get_outputs()}
        if inputs.keys() != _INPUTS or not outputs.issuperset(_OUTPUTS):
            raise UserError(
                f"Mask decoder {path} has inputs {sorted(inputs)} and outputs {sorted(outputs)}, not those of SAM's "
                f"ONNX export: {_REMEDY}."
            )
        self._run: Callable[..., list[Any]] = session.run
        _, self.embed_dim, self.embed_size, _ = inputs["image_embeddings"]
        self._no_mask = np.zeros(inputs["mask_input"], dtype=np.float32)
        self.preprocessing = sam_preprocessing(_CELL * self.embed_size)

    def open(self, embedding: torch.Tensor, placement: Placement) -> Callable[[ObjectPrompt], Answer]:
        """See `Decoder`; computed on the CPU."""
        return self.decode(self.features(embedding), placement)

    def features(self, embedding: torch.Tensor) -> list[torch.Tensor]:
        """See `MaskDecoder`."""
        return [embedding]

    def decode(self, features: list[torch.Tensor], placement: Placement) -> Callable[[ObjectPrompt], Answer]:
        """See `MaskDecoder`."""
        array = features[0].float().cpu().numpy()

        def ask(prompt: ObjectPrompt) -> Answer:
            points, labels = placement.object_to_input(prompt)
            if prompt.box is None:  # SAM's export wants a padding point in its place
                points, labels = np.concatenate([points, np.zeros((1, 2), np.float32)]), [*labels, _PADDING_LABEL]
            mask = None if prompt.mask is None else prompt.mask.numpy()
            low, scores = self.answer(array, points, labels, mask, placement.size)
            return _best(torch.from_numpy(low), torch.from_numpy(scores), placement)

        return ask

    def answer(
        self,
        embedding: Floats,
        points: Floats,
        labels: list[int],
        mask: Floats | None = None,
        size: tuple[int, int] = (1, 1),
    ) -> tuple[Floats, Floats]:
        """The graph's low-resolution logits (N, h, w) and predicted IoUs (N,).

        Args:
            embedding: (1, embed_dim, embed_size, embed_size).
            points: (K, 2) in pixels of the input, a box as its two corners, and padding where there is no box.
            labels: 1 or 0 for each point, 2 and 3 for corners, -1 for padding.
            mask: (h, w) logits of an earlier answer.
            size: height and width of the masks that the graph makes besides, which are not used.
        """
        scores, low = self._run(
            _OUTPUTS,
            {
                "image_embeddings": embedding,
                "point_coords": points[None],
                "point_labels": np.array([labels], dtype=np.float32),
                "mask_input": self._no_mask if mask is None else mask[None, None],
                "has_mask_input": np.array([float(mask is not None)], dtype=np.float32),
                "orig_im_size": np.array(size, dtype=np.float32),
            },
        )
        return low[0], scores[0]


class TrackerDecoder:
    """The neck, prompt encoder and mask decoder of a SAM3's tracker; see `MaskDecoder`."""

    def __init__(self, tracker: Any, device: torch.device, max_hole_area: int = MAX_HOLE_AREA) -> None:
        """Take transformers' `Sam3TrackerModel` on `device`; `max_hole_area` as in `Promptable.segment`."""
        self.tracker, self._device, self._max_hole_area = tracker, device, max_hole_area
        self.neck: nn.Module = tracker.vision_encoder.neck

    def behind(self, neck: nn.Module) -> Self:
        """The same decoder behind another neck, on its device."""
        found = copy.copy(self)
        found.neck = neck
        return found

    @torch.inference_mode()
    def open(self, embedding: torch.Tensor, placement: Placement) -> Callable[[ObjectPrompt], Answer]:
        """See `Decoder`."""
        return self.decode(self.features(embedding), placement)

    @torch.inference_mode()
    def features(self, embedding: torch.Tensor) -> list[torch.Tensor]:
        """See `MaskDecoder`."""
        return tracker_features(self.tracker, embedding.float().to(self._device), self.neck)

    def decode(self, features: list[torch.Tensor], placement: Placement) -> Callable[[ObjectPrompt], Answer]:
        """See `MaskDecoder`."""

        @torch.inference_mode()
        def ask(prompt: ObjectPrompt) -> Answer:
            return _best(*track_object(self.tracker, features, placement, prompt), placement, self._max_hole_area)

        return ask


class Sam3Decoder(TrackerDecoder):
    """SAM3's tracker from a file, without the image trunk."""

    def __init__(self, path: Path, device: torch.device, max_hole_area: int = MAX_HOLE_AREA) -> None:
        """Load them from a native SAM3 or a Hugging Face directory, EfficientSAM3 included.

        Args:
            path: of either.
            device: where PyTorch computes.
            max_hole_area: see `Promptable.segment`.

        Raises:
            UserError: there is no SAM3 at `path`, or it was merged without its tracker.
        """
        if not path.exists():
            raise UserError(f"Mask decoder {path} does not exist: {_REMEDY}.")
        contents = read_contents(path)
        if not contents.has("tracker_model."):
            raise UserError(f"{path} was merged without its tracker: merge with --keep tracker.")
        tracker: Any = build_tracker(contents).requires_grad_(False)
        backbone = contents.config.detector_config.vision_config.backbone_config
        self.embed_dim: int = backbone.hidden_size
        self.embed_size: int = backbone.image_size // backbone.patch_size
        self.preprocessing = sam3_preprocessing(backbone.image_size)
        super().__init__(tracker.to(device), device, max_hole_area)


def load_decoder(path: Path, device: torch.device, max_hole_area: int = MAX_HOLE_AREA) -> Decoder:
    """Open a mask decoder: `.onnx`, or a SAM3, which fills holes; SAM's own predictor does not.

    Raises:
        UserError: `path` is neither.
    """
    return OnnxDecoder(path) if path.suffix == ".onnx" else Sam3Decoder(path, device, max_hole_area)


def _best(logits: torch.Tensor, scores: torch.Tensor, placement: Placement, max_hole_area: int = 0) -> Answer:
    """The mask (M, h, w) with the highest predicted IoU (M,), the only one that is resized."""
    best = int(scores.argmax())
    masks = masks_to_image(placement, logits[best : best + 1], max_hole_area).cpu()
    return Answer(masks, scores[best : best + 1].float().cpu(), logits[best].float().cpu())
