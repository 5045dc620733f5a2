"""Run SAM3's text encoder over phrases once and store their token features. Resumable, with any number of processes."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from efficientsam3.data.phrases import read_splits
from efficientsam3.embed.plan import EMBEDDINGS_DIR
from efficientsam3.models.teacher import sha256_checkpoint
from efficientsam3.models.text_students import END
from efficientsam3.models.text_tokens import valid_tokens
from efficientsam3.runtime.distributed import Process, all_gather, barrier, on_main
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import require_file
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.runtime.progress import progress_bar
from efficientsam3.sam3.contents import read_contents
from efficientsam3.sam3.text import TextEncoder, build_tokenizer, tokenize_phrases
from efficientsam3.store.manifest import PhraseManifest, TeacherIdentity, Tokenisation, write_store_manifest
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.store.records import pack_records, storable
from efficientsam3.store.shards import Shard
from efficientsam3.store.writer import BackgroundWriter

logger = logging.getLogger(LOGGER_NAME)


@dataclass(frozen=True)
class PhraseSummary:
    """What a run did, over all processes."""

    embedded: int
    present: int  # phrases that were in the store already
    too_long: tuple[str, ...]  # phrases that have too many tokens, or none


def embed_phrases(
    folder: Path, sam3: Path, output: Path, context_length: int, batch_size: int, process: Process
) -> PhraseSummary:
    """Compute and store the token features that are missing.

    Args:
        folder: has `train.txt` and `val.txt`.
        sam3: a SAM3 with its own text encoder.
        output: gets the store, in a folder `embeddings`.
        context_length: most tokens of a phrase, its start and its end included; longer phrases are left out.
        batch_size: phrases at once.
        process: this process among its peers; they share the phrases.

    Raises:
        UserError: there are no phrases, the checkpoint has no text encoder, the store was begun with other settings,
            features are not finite in float16, or the disk is full.
    """
    splits = read_splits(folder)
    phrases = [*splits.train, *splits.val]
    ids, fits = tokenize_phrases(build_tokenizer(), phrases, context_length, END)
    teacher = TextEncoder(read_contents(_existing(sam3)), process.device)
    manifest = PhraseManifest(
        embed_dim=teacher.embed_dim,
        embed_size=context_length,
        preprocessing=Tokenisation(context_length=context_length),
        teacher=TeacherIdentity(name="sam3-text", sha256=sha256_checkpoint(sam3)),
    )
    store_dir = output / EMBEDDINGS_DIR
    on_main(process, lambda: _begin(store_dir, manifest))
    rows = EmbeddingStore(store_dir, phrases=True).rows(np.array([phrase.encode() for phrase in phrases]))
    missing = np.flatnonzero(fits & (rows < 0))
    too_long = tuple(phrases[place] for place in np.flatnonzero(~fits))
    present = int((rows >= 0).sum())
    logger.info("%d phrases, %d in the store already, %d to embed", len(phrases), present, len(missing))
    for phrase in too_long[:3]:
        logger.warning("left out: %r has more than %d tokens, or none", phrase, context_length)
    barrier()  # no process writes before all have read what is there
    mine = missing[process.rank :: process.world_size]
    codec = manifest.build_codec(store_dir)
    with (
        BackgroundWriter(Shard(store_dir, process.rank), manifest.record_size) as writer,
        progress_bar("embed", len(mine), process.is_main) as advance,
    ):
        for start in range(0, len(mine), batch_size):
            places = mine[start : start + batch_size]
            features = _features(teacher, ids[places].to(process.device))
            finite = storable(features).tolist()
            records = pack_records(np.zeros(len(places), np.int32), codec.encode(features).cpu().numpy())
            for place, record, is_finite in zip(places, records, finite, strict=True):
                if not is_finite:
                    raise UserError(
                        f"The teacher's features of {phrases[place]!r} are not finite in float16: check its checkpoint."
                    )
                writer.append(phrases[place], record)
            advance(len(places))
    embedded = sum(all_gather(len(mine)))
    logger.info("embedded %d phrases to %s, %d were left out as too long", embedded, store_dir, len(too_long))
    return PhraseSummary(embedded, present, too_long)


def _features(teacher: TextEncoder, ids: torch.Tensor) -> torch.Tensor:
    """(B, L) ids to (B, D, 1, L), zeros behind each phrase's end."""
    valid = valid_tokens(ids)
    features = teacher(ids, valid.long()) * valid[..., None]  # [B, L, D]
    return features.transpose(1, 2).unsqueeze(2)


def _begin(store_dir: Path, manifest: PhraseManifest) -> None:
    store_dir.mkdir(parents=True, exist_ok=True)
    write_store_manifest(store_dir, manifest)


def _existing(path: Path) -> Path:
    if not path.is_dir():
        require_file(path, "SAM3 checkpoint", "give sam3.pt or a Hugging Face SAM3 directory")
    return path
