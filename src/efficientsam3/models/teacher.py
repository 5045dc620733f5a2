"""Teachers: SAM3's image trunk, or any image encoder in ONNX."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from efficientsam3.checkpoints.sam3 import inspect_trunk, load_trunk
from efficientsam3.data.preprocess import Preprocessing, sam3_preprocessing, sam_preprocessing
from efficientsam3.models.onnx_session import open_onnx
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import sha256_file

_SAM_SHAPE = (256, 64)
_REMEDY = (
    "give MODEL.RESUME (or --resume) a native sam3.pt, a Hugging Face SAM3 directory, or an .onnx image encoder; "
    "the README says how to get SAM3's weights"
)


class Teacher(Protocol):
    """A frozen image encoder."""

    embed_dim: int
    embed_size: int
    preprocessing: Preprocessing

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, image_size, image_size) normalised float32 to (B, embed_dim, embed_size, embed_size) float32."""
        ...


class Sam3Teacher:
    """SAM3's image trunk, frozen and in eval mode."""

    def __init__(self, path: Path, device: torch.device, autocast: torch.dtype | None = None) -> None:
        """Load the trunk alone from a native or Hugging Face checkpoint; `autocast` is None for float32."""
        self._trunk = load_trunk(path).to(device)
        config = self._trunk.config
        self.embed_dim: int = config.hidden_size
        self.embed_size: int = config.image_size // config.patch_size
        self.preprocessing = sam3_preprocessing(config.image_size)
        self._autocast = autocast

    @torch.inference_mode()
    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """See `Teacher`."""
        with torch.autocast(pixel_values.device.type, self._autocast, enabled=self._autocast is not None):
            tokens: torch.Tensor = self._trunk(pixel_values).last_hidden_state  # [B, E * E, D]
        return (
            tokens.float().transpose(1, 2).reshape(-1, self.embed_dim, self.embed_size, self.embed_size)
        )  # [B, D, E, E]


class OnnxTeacher:
    """An ONNX image encoder, run one image at a time, since a declared batch axis may not be a real one."""

    def __init__(self, path: Path, preprocessing: Preprocessing, embed_dim: int, embed_size: int) -> None:
        """Open the model and check its shapes where it declares them; see `inspect_onnx`."""
        session = open_onnx(path, "ONNX teacher", _REMEDY)
        self._run: Callable[..., list[Any]] = session.run
        self._input: str = session.get_inputs()[0].name
        self._output: str = session.get_outputs()[0].name
        self.embed_dim, self.embed_size, self.preprocessing = embed_dim, embed_size, preprocessing

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """See `Teacher`; computed on the CPU whatever the device of the pixels.

        Raises:
            UserError: the output has another shape than configured.
        """
        images = pixel_values.cpu().numpy()
        embeddings = [self._run([self._output], {self._input: image[None]})[0] for image in images]
        stacked = np.concatenate(embeddings)
        expected = (self.embed_dim, self.embed_size, self.embed_size)
        if stacked.shape[1:] != expected:
            raise UserError(
                f"The ONNX teacher gives embeddings of shape {stacked.shape[1:]}, not {expected}: set "
                "DISTILL.EMBED_DIM and DISTILL.EMBED_SIZE to what it gives."
            )
        return torch.from_numpy(stacked).to(pixel_values.device)


def is_onnx(path: Path) -> bool:
    """Whether a teacher checkpoint is taken as an ONNX model."""
    return path.suffix == ".onnx"


def teacher_preprocessing(path: Path, image_size: int, embed_dim: int, embed_size: int) -> Preprocessing | None:
    """What the teacher in `path` was trained on, without loading its weights; None where that cannot be known.

    Raises:
        UserError: the file is missing, is no teacher, or does not have the configured shape.
    """
    if is_onnx(path):
        inspect_onnx(path, image_size, embed_dim, embed_size)
        if (embed_dim, embed_size) == _SAM_SHAPE:
            return sam_preprocessing(image_size)
        return None
    if not path.exists():
        raise UserError(f"Teacher checkpoint {path} does not exist: {_REMEDY}.")
    config = inspect_trunk(path)
    grid = config.image_size // config.patch_size
    if image_size != config.image_size:
        raise UserError(
            f"DATA.IMG_SIZE {image_size} does not fit the teacher's rotary grid of {grid}x{grid} patches of "
            f"{config.patch_size} pixels: this teacher takes {config.image_size} only."
        )
    if (embed_dim, embed_size) != (config.hidden_size, grid):
        raise UserError(
            f"DISTILL.EMBED_DIM {embed_dim} and DISTILL.EMBED_SIZE {embed_size} do not fit the teacher in {path}: it "
            f"gives {config.hidden_size} channels and {grid} cells a side, set them to that."
        )
    return sam3_preprocessing(image_size)


def inspect_onnx(path: Path, image_size: int, embed_dim: int, embed_size: int) -> None:
    """Check the shapes that an ONNX encoder declares: input (B, 3, S, S), output (B, D, E, E).

    Raises:
        UserError: it is not readable, or declares other shapes.
    """
    session = open_onnx(path, "ONNX teacher", _REMEDY)
    for value, expected in (
        (session.get_inputs()[0], (3, image_size, image_size)),
        (session.get_outputs()[0], (embed_dim, embed_size, embed_size)),
    ):
        declared = tuple(value.shape)[1:]
        known = len(declared) == 3 and all(isinstance(size, int) for size in declared)
        if len(declared) != 3 or (known and declared != expected):
            raise UserError(
                f"ONNX teacher {path} declares {value.name} as {value.shape}, where the configuration says (B, "
                f"{', '.join(map(str, expected))}): set DATA.IMG_SIZE, DISTILL.EMBED_DIM and DISTILL.EMBED_SIZE to fit."
            )


def teacher_hash(path: Path) -> str:
    """SHA-256 of a checkpoint file, or of the names and hashes of a directory's safetensors files."""
    if path.is_file():
        return sha256_file(path)
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")):
        digest.update(f"{file.name} {sha256_file(file)}\n".encode())
    return digest.hexdigest()


def build_teacher(
    path: Path,
    preprocessing: Preprocessing,
    embed_dim: int,
    embed_size: int,
    device: torch.device,
    autocast: torch.dtype | None = None,
) -> Teacher:
    """Load the teacher in `path`; `teacher_preprocessing` has checked it before.

    Args:
        path: native sam3.pt, Hugging Face SAM3 directory, or ONNX image encoder.
        preprocessing: what the run feeds.
        embed_dim: channels of an ONNX encoder's output.
        embed_size: cells a side of an ONNX encoder's output.
        device: where a SAM3 trunk computes.
        autocast: dtype of a SAM3 trunk's matrix products, None for float32.
    """
    if is_onnx(path):
        return OnnxTeacher(path, preprocessing, embed_dim, embed_size)
    return Sam3Teacher(path, device, autocast)
