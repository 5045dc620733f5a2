"""From what the user names to what can be measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from efficientsam3.checkpoints.necks import read_trained_necks
from efficientsam3.checkpoints.training import is_training_checkpoint
from efficientsam3.data.preprocess import HALF, IMAGENET_MEAN, IMAGENET_STD, PerChannel, Preprocessing
from efficientsam3.evaluate.masks.encoders import Encoder, ModuleEncoder, RandomEncoder, StoreEncoder
from efficientsam3.evaluate.masks.request import Mean, Resize
from efficientsam3.evaluate.masks.segmenters import EncoderWithDecoder, Segmenter, WholeModel
from efficientsam3.export.onnx.manifest import Variant, is_onnx_directory, read_onnx_manifest
from efficientsam3.models.student_files import load_student_and_preprocessing
from efficientsam3.models.teacher import OnnxTeacher, TeacherSpec, build_teacher
from efficientsam3.predict.onnx_sam3 import OnnxSAM3
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.decoders import Decoder, TrackerDecoder, check_fits, load_decoder
from efficientsam3.sam3.efficientsam3 import EfficientSAM3
from efficientsam3.sam3.holes import MAX_HOLE_AREA
from efficientsam3.sam3.necks import load_neck
from efficientsam3.store.manifest import MANIFEST_NAME
from efficientsam3.store.reader import EmbeddingStore

RANDOM, ZEROS = "random", "zeros"
# About that of SAM's embeddings: 0.099 over ten images of a real SAM-style encoder.
RANDOM_STD = 0.1
_STATISTICS: dict[str, tuple[PerChannel, PerChannel]] = {
    "half": (HALF, HALF),
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
}


@dataclass(frozen=True)
class FedPixels:
    """What encoders are fed: `teacher` is what each was trained on, anything else is a deliberate mismatch.

    Embeddings that are read from a store stay as they are.
    """

    resize: Resize = "teacher"
    mean: Mean = "teacher"  # and the standard deviation that goes with it

    def apply(self, own: Preprocessing) -> Preprocessing:
        """An encoder's own preprocessing with these changes."""
        changes: dict[str, Any] = {} if self.resize == "teacher" else {"resize": self.resize}
        if self.mean != "teacher":
            changes["mean"], changes["std"] = _STATISTICS[self.mean]
        return own.model_copy(update=changes)


def open_models(
    models: Sequence[str],
    decoder: Path | None,
    fed: FedPixels,
    device: torch.device,
    seed: int = 0,
    max_hole_area: int = MAX_HOLE_AREA,
) -> list[Segmenter]:
    """Open everything that is measured.

    Args:
        models: each a merged EfficientSAM3 or a SAM3 (file or Hugging Face directory), or an ONNX directory of one
            (`DIR:int8` for a variant of its image encoder); or, with a decoder, a training checkpoint, an embedding
            store, an ONNX image encoder, or a baseline: `zeros`, noise (`random`), or `random:STD` of another standard
            deviation than 0.1; optionally as NAME=MODEL.
        decoder: decodes the embeddings of models that have no decoder of their own: SAM's as .onnx, or a SAM3.
        fed: what the encoders are fed.
        device: where PyTorch computes.
        seed: draws the random embeddings.
        max_hole_area: of every SAM3, see `Promptable.segment`.

    A training checkpoint with a trained neck of the tracker is decoded behind that.

    Raises:
        UserError: a model is missing or none of these, needs a decoder, or does not fit it; or two have one name.
    """
    named = named_models(models)
    missing = [model for model in named.values() if not (_is_named_without_file(model) or Path(model).exists())]
    if missing:
        raise UserError(
            f"Model {missing[0]} does not exist: give a SAM3, an encoder, a store, or the word {ZEROS} or {RANDOM}."
        )
    whole = {name for name, model in named.items() if _is_whole(model)}
    bare = [model for name, model in named.items() if name not in whole]
    if bare and decoder is None:
        raise UserError(f"{bare[0]} has no mask decoder: give one with --decoder, SAM's as .onnx or a SAM3.")
    if decoder is not None and not bare:
        raise UserError(f"--decoder {decoder} has no effect: every model brings its own, leave it out.")
    loaded = None if decoder is None else load_decoder(decoder, device, max_hole_area)
    segmenters: list[Segmenter] = []
    for name, model in named.items():
        if name in whole:
            sam3 = _whole(model, device)
            sam3.preprocessing = fed.apply(sam3.preprocessing)
            segmenters.append(WholeModel(name, sam3, max_hole_area))
        else:
            assert loaded is not None
            assert decoder is not None
            own = _behind_its_neck(model, loaded, decoder, device)
            segmenters.append(EncoderWithDecoder(name, _encoder(model, loaded, fed, device, seed), own))
    return segmenters


def _behind_its_neck(model: str, loaded: Decoder, decoder: Path, device: torch.device) -> Decoder:
    """The decoder for a model, behind the neck that was trained with it where there is one."""
    path = Path(model)
    necks = read_trained_necks(path) if is_training_checkpoint(path) else None
    if necks is None or "tracker" not in necks.origins:
        return loaded
    if not isinstance(loaded, TrackerDecoder):
        raise UserError(
            f"{model} was trained with the neck of a SAM3's tracker, and {decoder} has no neck: give the SAM3 of its "
            "training with --decoder."
        )
    return loaded.behind(load_neck(loaded.neck, necks, "tracker", model, str(decoder)).to(device))


def _whole(model: str, device: torch.device) -> EfficientSAM3 | OnnxSAM3:
    path, variant = _onnx_directory(model)
    if path is not None:
        return OnnxSAM3.from_pretrained(path, variant)
    return EfficientSAM3.from_pretrained(model, device.type)


def _onnx_directory(model: str) -> tuple[Path | None, Variant | None]:
    """The directory and the image encoder's variant of `DIR` or `DIR:int8`; None for anything else."""
    for variant in (None, *get_args(Variant)):
        path = Path(model if variant is None else model.removesuffix(f":{variant}"))
        if is_onnx_directory(path):
            return path, variant
    return None, None


def named_models(models: Sequence[str]) -> dict[str, str]:
    """Name to model. Without NAME=, the last two parts of the path, which distinguish checkpoints of two runs.

    Raises:
        UserError: two have one name, or a name has no model.
    """
    named: dict[str, str] = {}
    for given in models:
        name, separator, model = given.rpartition("=")
        if not separator or Path(given).exists():
            name, model = "/".join(Path(given).parts[-2:]), given
        if not model:
            raise UserError(f"{given!r} names no model: give NAME=MODEL, or a path alone.")
        if not name or name in named:
            raise UserError(f"Two models are called {name!r}: name them, as in student={model}.")
        named[name] = model
    return named


def last_nonrandom(models: Sequence[str]) -> int:
    """Index of the last model that is not random; of the last one where all are."""
    return max(
        (place for place, model in enumerate(named_models(models).values()) if _noise(model) is None), default=-1
    )


def named_zeros(models: Sequence[str]) -> str | None:
    """The name of the model whose embeddings are zeros; None where there is none."""
    return next((name for name, model in named_models(models).items() if _noise(model) == 0), None)


def _is_named_without_file(model: str) -> bool:
    return _noise(model) is not None or _onnx_directory(model)[0] is not None


def _is_whole(model: str) -> bool:
    path = Path(model)
    return not (_noise(model) is not None or OnnxTeacher.reads(path) or _is_store(path) or is_training_checkpoint(path))


def _noise(model: str) -> float | None:
    """The standard deviation that `zeros`, `random` or `random:STD` stands for; None for anything else."""
    if model == ZEROS:
        return 0.0
    word, _, number = model.partition(":")
    if word != RANDOM:
        return None
    try:
        std = float(number or RANDOM_STD)
    except ValueError:
        std = math.nan
    if not 0 <= std < math.inf:
        raise UserError(
            f"{model} is not understood: give {RANDOM}, or {RANDOM}:STD with a standard deviation of 0 or more."
        )
    return std


def _is_store(path: Path) -> bool:
    return (path / MANIFEST_NAME).is_file() or any(path.glob("rank*-keys.txt"))


def _encoder(model: str, decoder: Decoder, fed: FedPixels, device: torch.device, seed: int) -> Encoder:
    path = Path(model)
    if (std := _noise(model)) is not None:
        return RandomEncoder((decoder.embed_dim, decoder.embed_size), decoder.preprocessing, std, seed)
    if OnnxTeacher.reads(path):
        own = decoder.preprocessing
        if is_onnx_directory(path.parent):  # of an EfficientSAM3 or a student, which may be fed in another way
            own = read_onnx_manifest(path.parent).preprocessing
            check_fits(model, (decoder.embed_dim, decoder.embed_size), own, decoder)
        own = fed.apply(own)
        spec = TeacherSpec(path, own.image_size, decoder.embed_dim, decoder.embed_size, own)
        teacher = build_teacher(spec, own, device)
        return ModuleEncoder(teacher, teacher.preprocessing, device)
    if _is_store(path):
        store = EmbeddingStore(path)
        check_fits(model, (store.manifest.embed_dim, store.manifest.embed_size), store.manifest.preprocessing, decoder)
        return StoreEncoder(store)
    student, preprocessing = load_student_and_preprocessing(path)
    architecture = student.architecture
    check_fits(model, (architecture.embed_dim, architecture.embed_size), preprocessing, decoder)
    return ModuleEncoder(student.to(device), fed.apply(preprocessing), device)
