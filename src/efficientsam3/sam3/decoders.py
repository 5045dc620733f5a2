"""Frozen mask decoders that turn any encoder's embedding into masks: SAM's as ONNX, or SAM3's interactive predictor."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from efficientsam3.data.preprocess import SAM3_PREPROCESSING, SAM_PREPROCESSING, Preprocessing
from efficientsam3.models.onnx_session import open_onnx
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.build import build_models
from efficientsam3.sam3.contents import read_contents
from efficientsam3.sam3.geometry import Floats, Picture
from efficientsam3.sam3.prompts import Prompt
from efficientsam3.sam3.torch_calls import ask_tracker, to_masks, tracker_features

# SAM's ONNX export: https://github.com/facebookresearch/segment-anything/blob/main/segment_anything/utils/onnx.py
_INPUTS = {"image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size"}
_OUTPUTS = ["iou_predictions", "low_res_masks"]
_POSITIVE, _TOP_LEFT, _BOTTOM_RIGHT, _PADDING = 1, 2, 3, -1
_CELL = 16  # pixels of the input for each cell of a SAM embedding
_REMEDY = "give SAM's prompt encoder and mask decoder as .onnx, or a SAM3"


@dataclass(frozen=True)
class Answer:
    """Masks found for a prompt, the model's best first; one for a box or point."""

    masks: torch.Tensor  # (N, H, W) bool, on the CPU
    scores: torch.Tensor  # (N,) predicted IoU (box, point) or probability (text)


Ask = Callable[[Prompt], Answer]


class Decoder(Protocol):
    """A frozen prompt encoder and mask decoder."""

    embed_dim: int
    embed_size: int
    preprocessing: Preprocessing  # of the encoder that it belongs to

    def open(self, embedding: torch.Tensor, picture: Picture) -> Ask:
        """Take a picture's embedding (1, embed_dim, embed_size, embed_size); the result answers boxes and points."""
        ...


class OnnxDecoder:
    """SAM's prompt encoder and mask decoder as one ONNX model.

    Masks are taken at low resolution and brought to the picture here: that equals the model's own `masks` for its own
    preprocessing, and is right for squashed pictures too, which the model knows nothing of.
    """

    def __init__(self, path: Path) -> None:
        """Open the model.

        Raises:
            UserError: it is none, or its inputs and outputs are not those of SAM's export.
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
        self.preprocessing = SAM_PREPROCESSING.model_copy(update={"image_size": _CELL * self.embed_size})

    def open(self, embedding: torch.Tensor, picture: Picture) -> Ask:
        """See `Decoder`; computed on the CPU."""
        array = embedding.float().cpu().numpy()

        def ask(prompt: Prompt) -> Answer:
            points, labels = _onnx_prompt(prompt, picture)
            scores, low = self._run(
                _OUTPUTS,
                {
                    "image_embeddings": array,
                    "point_coords": points[None],
                    "point_labels": np.array([labels], dtype=np.float32),
                    "mask_input": self._no_mask,
                    "has_mask_input": np.zeros(1, dtype=np.float32),
                    "orig_im_size": np.array(picture.size, dtype=np.float32),
                },
            )
            return _best(torch.from_numpy(low[0]), torch.from_numpy(scores[0]), picture)

        return ask


class Sam3Decoder:
    """SAM3's interactive predictor: its neck, prompt encoder and mask decoder, without the image trunk."""

    def __init__(self, path: Path, device: torch.device) -> None:
        """Load them from a native SAM3 or a Hugging Face directory, EfficientSAM3 included.

        Raises:
            UserError: there is none of them at `path`, or it was merged without its interactive predictor.
        """
        if not path.exists():
            raise UserError(f"Mask decoder {path} does not exist: {_REMEDY}.")
        contents = read_contents(path)
        if not contents.has("tracker_model."):
            raise UserError(f"{path} was merged without its interactive predictor: merge with --keep tracker.")
        # Without the detector's own tensors, none of it is built.
        kept = {
            key: value
            for key, value in contents.tensors.items()
            if not key.startswith("detector_model.") or key.startswith("detector_model.vision_encoder.backbone.")
        }
        self._tracker: Any = build_models(replace(contents, tensors=kept)).tracker
        backbone = contents.config.detector_config.vision_config.backbone_config
        self.embed_dim: int = backbone.hidden_size
        self.embed_size: int = backbone.image_size // backbone.patch_size
        self.preprocessing = SAM3_PREPROCESSING.model_copy(update={"image_size": backbone.image_size})
        self._tracker.vision_encoder.backbone = torch.nn.Identity()  # never asked; its memory is given back
        self._device = device
        self._tracker.to(device)

    @torch.inference_mode()
    def open(self, embedding: torch.Tensor, picture: Picture) -> Ask:
        """See `Decoder`."""
        features = tracker_features(self._tracker, embedding.float().to(self._device))

        @torch.inference_mode()
        def ask(prompt: Prompt) -> Answer:
            points = picture.to_input_points([] if prompt.point is None else [prompt.point])
            box = None if prompt.box is None else picture.to_input_points([prompt.box[:2], prompt.box[2:]])
            found = ask_tracker(self._tracker, features, points, [_POSITIVE] * len(points), box)
            return _best(found.pred_masks[0, 0], found.iou_scores[0, 0], picture)

        return ask


def load_decoder(path: Path, device: torch.device) -> Decoder:
    """Open a mask decoder: `.onnx`, or a SAM3.

    Raises:
        UserError: it is neither.
    """
    return OnnxDecoder(path) if path.suffix == ".onnx" else Sam3Decoder(path, device)


def _onnx_prompt(prompt: Prompt, picture: Picture) -> tuple[Floats, list[int]]:
    if prompt.box is not None:
        return picture.to_input_points([prompt.box[:2], prompt.box[2:]]), [_TOP_LEFT, _BOTTOM_RIGHT]
    assert prompt.point is not None, "text is refused before work begins"
    # SAM's export wants a padding point where there is no box.
    point = picture.to_input_points([prompt.point])
    return np.concatenate([point, np.zeros((1, 2), np.float32)]), [_POSITIVE, _PADDING]


def _best(logits: torch.Tensor, scores: torch.Tensor, picture: Picture) -> Answer:
    """Of several masks (M, h, w), the one with the highest predicted IoU (M,), and only that one is resized."""
    best = int(scores.argmax())
    return Answer(to_masks(picture, logits[best : best + 1]).cpu(), scores[best : best + 1].float().cpu())
