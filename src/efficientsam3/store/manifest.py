"""`manifest.json`: what an embedding store contains and how it was computed."""

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from efficientsam3.data.augment import Augmentation
from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import read_bytes, write_text
from efficientsam3.store.codecs import build_codec, payload_size
from efficientsam3.store.encodings import Codec, Float16Codec
from efficientsam3.store.projection import load_projection
from efficientsam3.store.records import SEED_BYTES

MANIFEST_NAME = "manifest.json"
_MOST_BYTES = 1 << 20
NO_IDENTITY = bytes(16)


class TeacherIdentity(BaseModel):
    """Which weights computed the embeddings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: str = Field(description="hash of the checkpoint file, or of a directory's safetensors files in order")
    compute_dtype: str = Field("float32", description="dtype of the teacher's matrix products")


class ProjectionIdentity(BaseModel):
    """The projection of a pca{K} codec, whose coefficients the records store; its file is next to the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(description="hash of projection.safetensors")
    variance_kept: float = Field(description="share of the variance of the images that it was fitted on")
    images: int = Field(gt=0, description="number of images that it was fitted on")


class StoreManifest(BaseModel):
    """Everything that two runs must share to write into one store. Written before the first record."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    codec: str = "float16"
    embed_dim: int = Field(gt=0)
    embed_size: int = Field(gt=0)
    preprocessing: Preprocessing
    augmentation: Augmentation = Augmentation()
    seed: int = 0
    projection: ProjectionIdentity | None = Field(None, description="projection of codec pca{K}-int8 or pca{K}-int4")
    teacher: TeacherIdentity | None = Field(None, description="None for a store in the published format")

    def build_codec(self, directory: Path) -> Codec:
        """The codec of the payloads of the store in `directory`.

        Raises:
            UserError: the codec is not known, or its projection is missing or not one for it.
        """
        projection = None
        if self.projection is not None:
            projection = load_projection(directory, self.projection.sha256, self.projection.variance_kept)
        return build_codec(self.codec, self.embed_dim, self.embed_size, projection)

    @property
    def record_size(self) -> int:
        """Bytes per record."""
        return SEED_BYTES + payload_size(self.codec, self.embed_dim, self.embed_size)

    @property
    def identity(self) -> bytes:
        """16 bytes that differ for different manifests; settings at their defaults, also future ones, do not count."""
        content = json.dumps(self.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=16).digest()


class Tokenisation(BaseModel):
    """How a phrase becomes tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary: Literal["clip"] = "clip"
    context_length: int = Field(ge=3, description="tokens of a phrase at most, its start and its end included")


class PhraseManifest(StoreManifest):
    """Of a store whose records are phrases: (D, 1, L) grids of token features, zeros behind a phrase's end.

    `embed_size` is the context length L, and the id of a record is its phrase.
    """

    contents: Literal["phrases"] = "phrases"
    codec: Literal["float16"] = "float16"
    preprocessing: Tokenisation  # type: ignore[assignment]  # other inputs

    def build_codec(self, directory: Path) -> Codec:
        """See `StoreManifest`."""
        return Float16Codec(self.embed_dim, self.embed_size, rows=1)

    @property
    def record_size(self) -> int:
        """See `StoreManifest`."""
        return SEED_BYTES + Float16Codec(self.embed_dim, self.embed_size, rows=1).payload_size


def read_store_manifest(directory: Path, phrases: bool = False) -> StoreManifest | None:
    """The manifest of the store in `directory`, or None for a store in the published format, which has none.

    Args:
        directory: the store.
        phrases: whether it may be a `PhraseManifest`.

    Raises:
        UserError: the manifest cannot be read, is damaged or has a newer format, or is one of phrases.
    """
    path = directory / MANIFEST_NAME
    try:
        content = json.loads(read_bytes(path, _MOST_BYTES).decode("utf-8"))
        if isinstance(content, dict) and content.get("contents") == "phrases":
            if not phrases:
                raise UserError(f"{directory} is a store of phrases: give one of images, or see `efficientsam3 text`.")
            return PhraseManifest.model_validate(content)
        return StoreManifest.model_validate(content)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(
            f"Store manifest {path} cannot be read ({error.strerror}): restore it, or let it be read."
        ) from error
    except (ValidationError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(
            f"Store manifest {path} is damaged or of another version ({' '.join(str(error).split())[:200]}); "
            "restore it, or use the version that wrote it."
        ) from error


def open_manifest(directory: Path, phrases: bool = False) -> StoreManifest:
    """The manifest of a store that must have one.

    Args:
        directory: the store.
        phrases: whether it may be a `PhraseManifest`.

    Raises:
        UserError: the store or its manifest does not exist, or cannot be read, or is one of phrases.
    """
    manifest = read_store_manifest(directory, phrases) if directory.is_dir() else None
    if manifest is None:
        raise UserError(f"{directory} has no {MANIFEST_NAME}: give the folder of an embedding store.")
    return manifest


def store_identity(directory: Path) -> bytes:
    """The identity of a store's manifest, NO_IDENTITY where it has none; errors as for `read_store_manifest`."""
    manifest = read_store_manifest(directory, phrases=True)
    return NO_IDENTITY if manifest is None else manifest.identity


def write_store_manifest(directory: Path, manifest: StoreManifest) -> None:
    """Write the manifest, or check that an existing one is equal.

    Raises:
        UserError: the store was begun with other settings, or its records have no manifest to compare with.
    """
    present = read_store_manifest(directory, phrases=isinstance(manifest, PhraseManifest))
    if present is None:
        if any(directory.glob("rank*-keys.txt")):
            raise UserError(
                f"Store {directory} has records but no {MANIFEST_NAME}, so their settings are not known: "
                "embed into another OUTPUT."
            )
        write_text(directory / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")
        return
    fields = type(manifest).model_fields
    differing = [name for name in fields if getattr(present, name, None) != getattr(manifest, name)]
    if differing:
        changes = ", ".join(f"{name} {getattr(present, name)!r} -> {getattr(manifest, name)!r}" for name in differing)
        raise UserError(
            f"Store {directory} was begun with other settings ({changes}): use the same ones, or another OUTPUT."
        )
