"""What the training of a text student will do, found out and checked before work begins; see `plan`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efficientsam3.config.text import TextTrainConfig
from efficientsam3.data.phrases import read_splits
from efficientsam3.models.text_students import Padding, TextArchitecture, pad_token
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.text import build_tokenizer, tokenize_phrases
from efficientsam3.store.manifest import PhraseManifest
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.train.phrases import PhraseDataset, PhrasePlan, word_ends
from efficientsam3.train.plan import Optimisation
from efficientsam3.train.targets import StoredTargets


@dataclass(frozen=True)
class Phrases:
    """Phrases with the store of their features."""

    train: PhraseDataset
    val: PhraseDataset
    store: EmbeddingStore
    word_ends: torch.Tensor

    def check_fits(self, architecture: TextArchitecture, path: Path) -> None:
        """Check that a student gives features such as the store has.

        Raises:
            UserError: it does not.
        """
        manifest = self.store.manifest
        wanted, given = (manifest.embed_dim, manifest.embed_size), (architecture.embed_dim, architecture.context_length)
        if wanted != given:
            raise UserError(
                f"The text student in {path} gives {given[0]} channels for up to {given[1]} tokens, the store "
                f"{self.store.directory} has {wanted[0]} for {wanted[1]}: give the store that it was trained on."
            )


def open_phrases(folder: Path, store_dir: Path, padding: Padding, limit: int = 0) -> Phrases:
    """Open phrases and their features.

    Args:
        folder: has `train.txt` and `val.txt`.
        store_dir: the store.
        padding: of a student.
        limit: take the first so many phrases of each split; 0: all.

    Raises:
        UserError: the phrases or the store are missing, empty, or of another kind; or the tokenizer's vocabulary is not
            installed.
    """
    splits = read_splits(folder)
    store = EmbeddingStore(store_dir, phrases=True)
    manifest = store.manifest
    if not isinstance(manifest, PhraseManifest):
        raise UserError(
            f"{store_dir} is a store of images: give one of phrases, which `efficientsam3 text embed` makes."
        )
    tokenizer, pad_id = build_tokenizer(), pad_token(padding)

    def dataset(phrases: tuple[str, ...]) -> PhraseDataset:
        phrases = phrases[: limit or None]
        rows = store.rows(np.array([phrase.encode() for phrase in phrases]))
        ids, fits = tokenize_phrases(tokenizer, phrases, manifest.embed_size, pad_id)
        return PhraseDataset(phrases, ids, rows, np.flatnonzero(fits & (rows >= 0)))

    train, val = dataset(splits.train), dataset(splits.val)
    if not len(train):
        raise UserError(
            f"None of the {len(splits.train)} training phrases in {folder} is in {store_dir}: embed them first by "
            "`efficientsam3 text embed`."
        )
    return Phrases(train, val, store, word_ends(tokenizer))


def plan_phrases(config: TextTrainConfig) -> PhrasePlan:
    """Check everything that can be checked before work begins; errors as for `open_phrases`."""
    data, student, distill = config.DATA, config.MODEL, config.DISTILL
    found = open_phrases(data.DATA_PATH, distill.TEACHER_EMBED_PATH, student.PADDING, data.NUM_SAMPLES)
    train, val, manifest = found.train, found.val, found.store.manifest
    architecture = TextArchitecture(student.BACKBONE, manifest.embed_dim, manifest.embed_size, student.PADDING)
    recorded: dict[str, Any] = json.loads(config.model_dump_json())
    recorded["DISTILL"] |= {"EMBED_DIM": manifest.embed_dim, "CONTEXT_LENGTH": manifest.embed_size}
    return PhrasePlan(
        train=train,
        val=val,
        targets=StoredTargets(found.store),
        architecture=architecture,
        without_embedding=train.without + val.without,
        standardise=False,
        rotate=None,
        statistics=None,
        term_weights={"mse": distill.TOKEN_WISE, "cosine": distill.COSINE},
        learns_padding=False,
        masks=None,
        detector=None,
        necks={},
        optimisation=Optimisation(**{key.lower(): value for key, value in config.TRAIN}),
        batch_size=config.DATA.BATCH_SIZE,
        num_workers=0,  # all tokens are in memory
        read_window=0,
        pretrained=False,
        resume=config.MODEL.RESUME,
        probe=None,
        output_dir=config.output_dir,
        save_freq=config.SAVE_FREQ,
        print_freq=config.PRINT_FREQ,
        seed=config.SEED,
        amp=config.AMP_ENABLE,
        recorded=recorded,
        shuffle=distill.SHUFFLE,
        word_ends=found.word_ends,
    )
