"""Phrases to distil a text encoder on: read, generated, and split so that no noun of validation is trained on."""

import importlib.util
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from efficientsam3.data.annotations.coco import MAX_INSTANCES_BYTES, CocoCategory, Record
from efficientsam3.data.annotations.lvis import phrase_of
from efficientsam3.data.split import SPLITS, Split, split_of
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import read_bytes, unreadable
from efficientsam3.runtime.logging import LOGGER_NAME

logger = logging.getLogger(LOGGER_NAME)
_MAX_BYTES = 1 << 30
# WordNet's nouns for each class of ImageNet, a file inside timm: "n00007846<tab>person, individual, someone".
_NOUNS = Path("data/_info/imagenet_synset_to_lemma.txt")
_NOUN = re.compile(r"[a-z]+( [a-z]+){0,2}")
_ATTRIBUTE_LIST = """
    red green blue yellow white black brown grey pink purple orange golden silver striped spotted plain bright dark
    pale shiny wooden metal plastic leather stone paper woollen rusty dusty dirty clean wet dry broken cracked folded
    open closed empty full small large tiny huge tall short long round square flat thick thin wide narrow old new
    antique modern young wild sleeping running standing sitting hanging floating leftmost rightmost nearest distant
    blurred reflected painted decorated
"""
_ATTRIBUTES = tuple(_ATTRIBUTE_LIST.split())
_RELATIONS = ("with", "on", "near", "under", "behind", "beside", "in front of")
_BEFORE_NOUN = frozenset({"a", "an", "the", "of", "in", "on", "at", "to", "and", "or", "no", "not", "is", "are"})
# What ends the noun's own words: "a glass of water" is a glass.
_ENDS = """
    of with on in at near under behind beside over above below by from for to without that which who is are being
    wearing holding and or
"""
_BEHIND_NOUN = frozenset(_ENDS.split())
_BLOCK = 4096
_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")


@dataclass(frozen=True)
class PhraseSplits:
    """Phrases of each split, sorted; no noun that one of `val` is about is a word of one of `train`."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    dropped: int  # phrases that are in neither: they are about another noun, and have one of validation's in them


def read_phrases(path: Path) -> list[str]:
    """The phrases of a text file, one a line; empty lines are passed over.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    try:
        lines = read_bytes(path, _MAX_BYTES).decode("utf-8-sig").splitlines()
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise UserError(f"The phrases in {path} are not UTF-8 ({error}): write them in UTF-8.") from error
    return [line.strip() for line in lines if line.strip()]


def read_categories(path: Path) -> list[str]:
    """The names of the categories in a file of COCO or LVIS, as words.

    Raises:
        UserError: it cannot be read, or has no categories.
    """
    try:
        file = _Categories.model_validate_json(read_bytes(path, MAX_INSTANCES_BYTES))
    except OSError as error:
        raise unreadable(path, error) from error
    except ValidationError as error:
        raise UserError(
            f"{path} has no categories as files of COCO and LVIS have ({error.errors()[0]['msg']}): give such a file."
        ) from error
    return [phrase_of(category.name) for category in file.categories]


class _Categories(Record):
    categories: list[CocoCategory]


def normalise_phrase(text: str) -> str:
    """A phrase in the one spelling that it is embedded in: NFC, lower case as CLIP's tokens are, single spaces."""
    text = " ".join(unicodedata.normalize("NFC", text).lower().split())
    return "".join(letter for letter in text if letter.isprintable())


def head_noun(phrase: str) -> str:
    """The word that a normalised phrase is about: the last one before a preposition, in the singular.

    A rule of thumb for English noun phrases; "" where there is no word.
    """
    words = _WORD.findall(phrase)
    end = next((place for place, word in enumerate(words) if place and word in _BEHIND_NOUN), len(words))
    named = [word for word in words[:end] if word not in _BEFORE_NOUN]
    return _singular(named[-1] if named else "".join(words[-1:]))


def _singular(word: str) -> str:
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def split_phrases(phrases: Iterable[str], val_ratio: float) -> PhraseSplits:
    """Normalise, deduplicate, and hold out by noun, as `data.split` holds out images by id.

    Args:
        phrases: in any order; the same ones always give the same splits.
        val_ratio: the share of nouns in [0, 1] that are held out.
    """
    unique = sorted({normalise_phrase(text) for text in phrases} - {""})
    by_split: dict[Split, list[str]] = {split: [] for split in SPLITS}
    for phrase in unique:
        by_split[split_of(head_noun(phrase).encode(), val_ratio)].append(phrase)
    held_out = {head_noun(phrase) for phrase in by_split["val"]}
    train = [phrase for phrase in by_split["train"] if held_out.isdisjoint(map(_singular, _WORD.findall(phrase)))]
    return PhraseSplits(tuple(train), tuple(by_split["val"]), len(by_split["train"]) - len(train))


def read_splits(folder: Path) -> PhraseSplits:
    """The phrases in a folder's `train.txt` and `val.txt`, normalised.

    Raises:
        UserError: a file is missing or cannot be read, there are none to train on, or both have the same phrase.
    """
    train, val = (
        tuple(sorted({normalise_phrase(text) for text in read_phrases(folder / f"{split}.txt")} - {""}))
        for split in SPLITS
    )
    if not train:
        raise UserError(f"{folder / 'train.txt'} has no phrases: make it by `efficientsam3 text phrases`.")
    twice = sorted(set(train) & set(val))
    if twice:
        raise UserError(
            f"{twice[0]!r} is in both train.txt and val.txt of {folder}"
            f"{f', with {len(twice) - 1} more' if twice[1:] else ''}: take it out of one."
        )
    seen = {_singular(word) for phrase in train for word in _WORD.findall(phrase)}
    known = sum(head_noun(phrase) in seen for phrase in val)
    if known:
        logger.warning("%d of %d validation phrases are about a noun that is trained on", known, len(val))
    return PhraseSplits(train, val, 0)


def known_nouns() -> list[str]:
    """WordNet's nouns of ImageNet's classes, out of timm: lower case, of up to three words, sorted.

    Raises:
        UserError: timm lacks its list.
    """
    spec = importlib.util.find_spec("timm")
    folder = Path(((spec and spec.submodule_search_locations) or ["timm"])[0])
    try:
        text = read_bytes(folder / _NOUNS, _MAX_BYTES).decode("utf-8")
    except OSError as error:
        raise unreadable(folder / _NOUNS, error) from error
    lemmas = (lemma.strip() for line in text.splitlines() for lemma in line.partition("\t")[2].split(","))
    return sorted({lemma for lemma in lemmas if _NOUN.fullmatch(lemma)})


def generate_phrases(count: int, seed: int, nouns: Sequence[str] = ()) -> list[str]:
    """Combine nouns with attributes and with each other: `count` different phrases, the same for the same seed.

    Args:
        count: how many.
        seed: of the random choices.
        nouns: to use instead of `known_nouns`.

    Raises:
        UserError: the nouns give fewer.
    """
    nouns = nouns or known_nouns()
    generator = np.random.default_rng(seed)
    found: dict[str, None] = {}
    for phrase in _endless(nouns, generator, tries=20 * count + 1000):
        if len(found) == count:
            break
        found[phrase] = None
    if len(found) < count:
        raise UserError(f"{len(nouns)} nouns gave {len(found)} different phrases, not {count}: ask for fewer.")
    return list(found)


def _endless(nouns: Sequence[str], generator: np.random.Generator, tries: int) -> Iterator[str]:
    for size in [_BLOCK] * (tries // _BLOCK + 1):
        pairs = generator.integers(len(nouns), size=(size, 2)).tolist()
        firsts = generator.integers(len(_ATTRIBUTES), size=size).tolist()
        steps = generator.integers(1, len(_ATTRIBUTES), size=size).tolist()  # to another attribute
        relations = generator.integers(len(_RELATIONS), size=size).tolist()
        forms = generator.choice(4, size, p=(0.15, 0.45, 0.2, 0.2)).tolist()
        for (noun, other), first, step, relation, form in zip(pairs, firsts, steps, relations, forms, strict=True):
            one, two = _ATTRIBUTES[first], _ATTRIBUTES[(first + step) % len(_ATTRIBUTES)]
            yield (
                nouns[noun],
                f"{one} {nouns[noun]}",
                f"{one} {two} {nouns[noun]}",
                f"{one} {nouns[noun]} {_RELATIONS[relation]} a {nouns[other]}",
            )[form]
