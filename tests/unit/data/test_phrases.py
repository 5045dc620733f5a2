"""Phrases: their spelling, their nouns, and that no noun of validation is trained on."""

import json
from pathlib import Path

import pytest

from efficientsam3.data.phrases import (
    generate_phrases,
    head_noun,
    known_nouns,
    normalise_phrase,
    read_categories,
    read_splits,
    split_phrases,
)
from efficientsam3.runtime.errors import UserError


def test_one_spelling() -> None:
    assert normalise_phrase("  A\tred\u00a0 Cafe\u0301\x00 ") == "a red caf\u00e9"


@pytest.mark.parametrize(
    ("phrase", "noun"),
    [
        ("a red car", "car"),
        ("cars", "car"),
        ("two glasses of water", "glasse"),  # crude, but the same for every "glasses"
        ("person wearing a hat", "person"),
        ("the bus", "bus"),
        ("!", ""),
    ],
)
def test_head_noun(phrase: str, noun: str) -> None:
    assert head_noun(phrase) == noun


def test_no_noun_of_validation_is_a_word_of_training() -> None:
    phrases = generate_phrases(2000, seed=1)
    splits = split_phrases([*phrases, *(phrase.upper() for phrase in phrases)], 0.1)
    assert len(splits.train) + len(splits.val) + splits.dropped == len({normalise_phrase(text) for text in phrases})
    held_out = {head_noun(phrase) for phrase in splits.val}
    assert len(held_out) > 50
    assert splits.dropped > 0
    for phrase in splits.train:
        assert not held_out & {head_noun(word) for word in phrase.split()}, phrase
    assert split_phrases(reversed(phrases), 0.1) == splits


def test_generated_phrases_are_different_and_the_same_for_a_seed() -> None:
    assert len(known_nouns()) > 20_000
    phrases = generate_phrases(300, seed=3)
    assert len(set(phrases)) == 300
    assert phrases == generate_phrases(300, seed=3) != generate_phrases(300, seed=4)
    with pytest.raises(UserError, match="2 nouns gave .* different phrases, not 100000: ask for fewer"):
        generate_phrases(100_000, 0, ["cat", "dog"])


def test_names_of_categories(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"categories": [{"id": 1, "name": "bow_(weapon)"}, {"id": 2, "name": "hot dog"}]}))
    assert read_categories(path) == ["bow", "hot dog"]
    path.write_text("{}")
    with pytest.raises(UserError, match="has no categories as files of COCO and LVIS have"):
        read_categories(path)


def test_a_folder_of_phrases(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "train.txt").write_text("A dog\na  dog\n\na blue cat\n")
    (tmp_path / "val.txt").write_text("a tree\nblue dogs\n")
    splits = read_splits(tmp_path)
    assert (splits.train, splits.val) == (("a blue cat", "a dog"), ("a tree", "blue dogs"))
    assert "1 of 2 validation phrases are about a noun that is trained on" in caplog.text
    (tmp_path / "val.txt").write_text("A DOG\n")
    with pytest.raises(UserError, match="'a dog' is in both train.txt and val.txt"):
        read_splits(tmp_path)
    (tmp_path / "train.txt").write_text("\n")
    with pytest.raises(UserError, match="has no phrases"):
        read_splits(tmp_path)
