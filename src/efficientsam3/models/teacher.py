"""Teachers: SAM3's image trunk, or any image encoder in ONNX.

A further kind of teacher is a subclass of `Teacher` and its entry in `KINDS`.
"""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn.functional import pad

from efficientsam3.data.preprocess import SAM3_PREPROCESSING, SAM_PREPROCESSING, Preprocessing, sam3_preprocessing
from efficientsam3.models.onnx_session import open_onnx
from efficientsam3.runtime.device import autocast_dtype
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import sha256_file
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.store.codecs import CODECS

logger = logging.getLogger(LOGGER_NAME)
# What the teachers of known embedding shapes (embed_dim, embed_size) were trained on: SAM3, and SAM and its like.
KNOWN_TEACHERS = {(1024, 72): SAM3_PREPROCESSING, (256, 64): SAM_PREPROCESSING}
_REMEDY = (
    "give MODEL.RESUME (or --resume) a native sam3.pt, a Hugging Face SAM3 directory, or an .onnx image encoder; "
    "the README says how to get SAM3's weights"
)
_ONNX = "ONNX teacher"
# Largest relative error of an image's embedding by the compiled trunk: records of either can be checked by the other.
COMPILED_TOLERANCE = CODECS["float16"].tolerance


@dataclass(frozen=True)
class TeacherSpec:
    """What is known of a teacher without loading its weights."""

    path: Path
    image_size: int  # side of its input in pixels
    embed_dim: int  # channels of its embedding
    embed_size: int  # cells a side of its embedding
    preprocessing: Preprocessing | None  # what it was trained on; None where that is unknown
    name: str = "sam3"  # recorded in the manifest of a store

    def compute_dtype(self, device: torch.device, amp: bool) -> torch.dtype:
        """The dtype of the teacher's matrix products on `device`, with or without mixed precision."""
        dtype = autocast_dtype(device) if amp and _kind(self.path).autocasts else None
        return dtype or torch.float32

    def sha256(self) -> str:
        """See `sha256_checkpoint`."""
        return sha256_checkpoint(self.path)


def sha256_checkpoint(path: Path) -> str:
    """SHA-256 of a checkpoint file, or of the names and hashes of a directory's safetensors files."""
    if path.is_file():
        return sha256_file(path)
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")):
        digest.update(f"{file.name} {sha256_file(file)}\n".encode())
    return digest.hexdigest()


Backend = str | Callable[..., Callable[..., Any]]


class Teacher(ABC):
    """A frozen image encoder."""

    autocasts: ClassVar[bool]  # whether mixed precision applies to it
    compiles: ClassVar[bool] = False  # whether it has `compile`

    def __init__(
        self, spec: TeacherSpec, preprocessing: Preprocessing, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Load the weights; see `build_teacher`. `dtype` is that of the matrix products."""
        self.embed_dim = spec.embed_dim
        self.embed_size = spec.embed_size
        self.preprocessing = preprocessing

    @staticmethod
    @abstractmethod
    def reads(path: Path) -> bool:
        """Whether `path` is of this kind."""

    @staticmethod
    @abstractmethod
    def inspect(path: Path, image_size: int | None, embed_dim: int | None, embed_size: int | None) -> TeacherSpec:
        """See `inspect_teacher`."""

    @abstractmethod
    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, image_size, image_size) normalised float32 to (B, embed_dim, embed_size, embed_size) float32."""

    def compile(self, batch_size: int, backend: Backend = "inductor") -> None:
        """Compile it at the first call, which is compared with what it gives otherwise; where the kind `compiles`.

        Args:
            batch_size: images of the largest batch; smaller ones are padded to it, since each size is compiled anew.
            backend: of torch.compile.
        """
        raise NotImplementedError


class Sam3Teacher(Teacher):
    """SAM3's image trunk, from a native or Hugging Face checkpoint; frozen and in eval mode."""

    autocasts = True
    compiles = True

    @staticmethod
    def reads(path: Path) -> bool:
        """Whatever no other kind reads; `inspect` refuses what is not SAM3."""
        return True

    @staticmethod
    def inspect(path: Path, image_size: int | None, embed_dim: int | None, embed_size: int | None) -> TeacherSpec:
        """See `inspect_teacher`; a trunk has one shape, given by its weights."""
        if not path.exists():
            raise UserError(f"Teacher checkpoint {path} does not exist: {_REMEDY}.")
        # Here, because importing transformers takes seconds, and neither an ONNX teacher nor a store needs it.
        from efficientsam3.checkpoints.sam3 import inspect_trunk

        config = inspect_trunk(path)
        grid = config.image_size // config.patch_size
        if image_size not in (None, config.image_size):
            raise UserError(
                f"DATA.IMG_SIZE {image_size} does not fit the teacher's rotary grid of {grid}x{grid} patches of "
                f"{config.patch_size} pixels: this teacher takes {config.image_size} only."
            )
        found = (config.hidden_size, grid)
        wanted = (embed_dim or found[0], embed_size or found[1])
        if wanted != found:
            raise UserError(
                f"DISTILL.EMBED_DIM {wanted[0]} and DISTILL.EMBED_SIZE {wanted[1]} do not fit the teacher in {path}: "
                f"it gives {found[0]} channels and {found[1]} cells a side, set them to that."
            )
        preprocessing = sam3_preprocessing(config.image_size)
        return TeacherSpec(path, config.image_size, *found, preprocessing)

    def __init__(
        self, spec: TeacherSpec, preprocessing: Preprocessing, device: torch.device, dtype: torch.dtype
    ) -> None:
        """See `Teacher`."""
        super().__init__(spec, preprocessing, device, dtype)
        from efficientsam3.checkpoints.sam3 import load_trunk  # see above

        self._trunk = load_trunk(spec.path).to(device)
        self._dtype = dtype
        self._batch_size = 0  # to which batches are padded
        self._backend: Backend | None = None  # for as long as it is still to be compiled

    def compile(self, batch_size: int, backend: Backend = "inductor") -> None:
        """See `Teacher`."""
        self._batch_size, self._backend = batch_size, backend

    @torch.inference_mode()
    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """See `Teacher`.

        Raises:
            UserError: it cannot be compiled, or the compiled trunk gives other embeddings.
        """
        count = len(pixel_values)
        if count < self._batch_size:
            pixel_values = pad(pixel_values, (0, 0) * 3 + (0, self._batch_size - count))
        if self._backend is not None:
            self._compile(pixel_values[:count], pixel_values)
        return self._embed(pixel_values)[:count]

    def _compile(self, images: torch.Tensor, padded: torch.Tensor) -> None:
        from torch._dynamo.exc import TorchDynamoException  # takes a second to import

        assert self._backend is not None
        eager = self._embed(images)
        compile_trunk(self._trunk, self._backend)
        self._backend = None
        remedy = "leave COMPILE of the teacher (--compile-teacher) out"
        try:
            difference = self._embed(padded)[: len(images)] - eager
        except TorchDynamoException as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"The teacher cannot be compiled here ({reason}): {remedy}.") from error
        errors = difference.flatten(1).norm(dim=1) / eager.flatten(1).norm(dim=1)
        # What is not finite without compiling is refused with its image's name.
        worst = max((float(error) for error in errors[eager.flatten(1).isfinite().all(dim=1)]), default=0.0)
        if not worst <= COMPILED_TOLERANCE:
            raise UserError(
                f"The compiled teacher's embeddings differ by {worst:.2g} (relatively) from those without compiling, "
                f"more than {COMPILED_TOLERANCE:g}: {remedy}, and report it with the versions of PyTorch and Triton."
            )
        logger.info("the compiled teacher differs by %.2g (relatively) on the first batch", worst)

    def _embed(self, pixel_values: torch.Tensor) -> torch.Tensor:
        with torch.autocast(pixel_values.device.type, self._dtype, enabled=self._dtype != torch.float32):
            tokens: torch.Tensor = self._trunk(pixel_values).last_hidden_state  # [B, E * E, D]
        return (
            tokens.float().transpose(1, 2).reshape(-1, self.embed_dim, self.embed_size, self.embed_size)
        )  # [B, D, E, E]


def compile_trunk(trunk: Any, backend: Backend = "inductor") -> None:
    """Compile the layers of SAM3's trunk at their next call; alike, they are compiled twice: with windows and without.

    Args:
        trunk: transformers' `Sam3ViTModel`.
        backend: of torch.compile.
    """
    for layer in trunk.layers:
        layer.compile(backend=backend, dynamic=False)


class OnnxTeacher(Teacher):
    """An ONNX image encoder, run one image at a time, since a declared batch axis may not be a real one."""

    autocasts = False

    @staticmethod
    def reads(path: Path) -> bool:
        """Whether the file is named as an ONNX model."""
        return path.suffix == ".onnx"

    @staticmethod
    def inspect(path: Path, image_size: int | None, embed_dim: int | None, embed_size: int | None) -> TeacherSpec:
        """See `inspect_teacher`; the model declares an image (B, 3, S, S) and an embedding (B, D, E, E)."""
        session = open_onnx(path, _ONNX, _REMEDY)
        inputs = [value.name for value in session.get_inputs()]
        if len(inputs) != 1:
            raise UserError(
                f"{_ONNX} {path} takes {', '.join(inputs) or 'nothing'}, not an image alone: export it with one input."
            )
        image, embedding = session.get_inputs()[0], session.get_outputs()[0]
        _, side = _declared(path, image, {"channels": 3, "DATA.IMG_SIZE": image_size})
        shape = _declared(path, embedding, {"DISTILL.EMBED_DIM": embed_dim, "DISTILL.EMBED_SIZE": embed_size})
        known = KNOWN_TEACHERS.get(shape)
        preprocessing = known.model_copy(update={"image_size": side}) if known else None
        return TeacherSpec(path, side, *shape, preprocessing)

    def __init__(
        self, spec: TeacherSpec, preprocessing: Preprocessing, device: torch.device, dtype: torch.dtype
    ) -> None:
        """See `Teacher`; it computes on the CPU, in float32."""
        super().__init__(spec, preprocessing, device, dtype)
        session = open_onnx(spec.path, _ONNX, _REMEDY)
        self._run: Callable[..., list[Any]] = session.run
        self._input: str = session.get_inputs()[0].name
        self._output: str = session.get_outputs()[0].name

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """See `Teacher`.

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


# The first kind that reads a path takes it.
KINDS: tuple[type[Teacher], ...] = (OnnxTeacher, Sam3Teacher)


def inspect_teacher(
    path: Path,
    image_size: int | None = None,
    embed_dim: int | None = None,
    embed_size: int | None = None,
    name: str = "sam3",
) -> TeacherSpec:
    """Describe the teacher in `path` without loading its weights.

    Args:
        path: native sam3.pt, Hugging Face SAM3 directory, or ONNX image encoder.
        image_size: side of the input as configured; None leaves it to the teacher.
        embed_dim: channels of the embedding, likewise.
        embed_size: cells a side of the embedding, likewise.
        name: recorded in the manifest of a store.

    Raises:
        UserError: the file is missing or not a teacher, does not have the configured shape, or does not declare the
            shape that is left to it.
    """
    return replace(_kind(path).inspect(path, image_size, embed_dim, embed_size), name=name)


def check_compiles(path: Path) -> None:
    """Check that the teacher in `path` is of a kind that can be compiled.

    Raises:
        UserError: it is not.
    """
    if not _kind(path).compiles:
        raise UserError(
            f"The teacher {path} is not PyTorch's to compile: leave COMPILE of the teacher (--compile-teacher) out."
        )


def build_teacher(spec: TeacherSpec, preprocessing: Preprocessing, device: torch.device, amp: bool = False) -> Teacher:
    """Load the teacher that `inspect_teacher` described.

    Args:
        spec: the teacher.
        preprocessing: what the run feeds.
        device: where a PyTorch teacher computes.
        amp: whether it computes in mixed precision, where its kind and the hardware have it.
    """
    return _kind(spec.path)(spec, preprocessing, device, spec.compute_dtype(device, amp))


def _kind(path: Path) -> type[Teacher]:
    return next(kind for kind in KINDS if kind.reads(path))


def _declared(path: Path, value: Any, wanted: dict[str, int | None]) -> tuple[int, int]:
    """Channels and side of an ONNX model's image or embedding: those configured, else those declared.

    Args:
        path: the model.
        value: its input or output, as onnxruntime describes it.
        wanted: the configuration's keys and values for channels and side; None leaves one to the model.

    Raises:
        UserError: the model declares another shape, or leaves open what the configuration leaves to it.
    """
    # An axis of any size has a name or None instead of a number.
    axes = [axis if isinstance(axis, int) else None for axis in value.shape][1:]
    (dim_key, dim), (side_key, side) = wanted.items()
    if len(axes) == 3:
        dim, side = dim or axes[0], side or axes[1]
    if len(axes) != 3 or any(axis not in (None, size) for axis, size in zip(axes, (dim, side, side), strict=True)):
        expected = f"(B, {dim or dim_key}, {side or side_key}, {side or side_key})"
        raise UserError(
            f"{_ONNX} {path} declares {value.name} as {value.shape}, where the configuration says {expected}: set "
            "DATA.IMG_SIZE, DISTILL.EMBED_DIM and DISTILL.EMBED_SIZE to fit."
        )
    if dim is None or side is None:
        key = dim_key if dim is None else side_key
        raise UserError(f"{_ONNX} {path} does not declare the size of {value.name} ({value.shape}): set {key}.")
    return dim, side
