"""A text student from phrases to figures, and the parts that are its own."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from efficientsam3.checkpoints.training import load_training_checkpoint
from efficientsam3.cli import main
from efficientsam3.config.load import load_config
from efficientsam3.config.text import TextTrainConfig
from efficientsam3.data.phrases import generate_phrases, split_phrases
from efficientsam3.embed.phrases import embed_phrases
from efficientsam3.evaluate.phrases import evaluate_phrases
from efficientsam3.models.text_student_files import load_text_student
from efficientsam3.models.text_tokens import valid_tokens
from efficientsam3.runtime.distributed import Process
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.build import build_detector
from efficientsam3.sam3.contents import read_contents
from efficientsam3.sam3.text import build_tokenizer, tokenize, tokenize_phrases
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.store.repair import verify_store
from efficientsam3.train.objective import FeatureObjective
from efficientsam3.train.phrase_plan import plan_phrases
from efficientsam3.train.phrases import PhraseCollate, PhraseObjective, shuffle_words, word_ends
from efficientsam3.train.prompts import Shown
from efficientsam3.train.run import TrainSummary, run_training
from sharing import made_once
from unit.conftest import CONFIGS, ONE
from unit.train.record_training import StopAfter

LENGTH = 16
TrainText = Callable[..., TrainSummary]


@pytest.fixture(scope="session")
def phrases_path(tmp_path_factory: pytest.TempPathFactory, tiny_sam3_path: Path) -> Path:
    """Some 300 phrases, and the store of their features in `teacher`. Not to be changed: copy it first."""

    def make(path: Path) -> None:
        path.mkdir()
        nouns = [
            f"{first}{last}" for first in ("sea", "rain", "sun", "wood") for last in ("cat", "dog", "bird", "cart")
        ]
        splits = split_phrases(generate_phrases(400, 0, nouns), 0.2)
        (path / "train.txt").write_text("\n".join([*splits.train, " ".join(["long"] * 20)]))
        (path / "val.txt").write_text("\n".join(splits.val))
        embed_phrases(path, tiny_sam3_path, path / "teacher", LENGTH, 64, ONE)

    return made_once(tmp_path_factory, "phrases", make)


@pytest.fixture
def train_text(tmp_path: Path, phrases_path: Path) -> TrainText:
    """Trains a small text student, with more options where given."""

    def run(*opts: str, stop_after: int = 0, allow: bool = False) -> TrainSummary:
        return run_training(plan_phrases(config(*opts)), ONE, StopAfter(stop_after), None, allow)

    def config(*opts: str) -> TextTrainConfig:
        given = ["MODEL.BACKBONE", "mct/16x3x2", "DISTILL.TEACHER_EMBED_PATH", f"{phrases_path}/teacher/embeddings"]
        given += ["OUTPUT", str(tmp_path / "out"), "TRAIN.EPOCHS", "2", "TRAIN.WARMUP_EPOCHS", "0", "DEVICE", "cpu"]
        given += ["DATA.DATA_PATH", str(phrases_path), "TRAIN.BASE_LR", "3e-3"]
        return load_config(TextTrainConfig, CONFIGS / "text" / "es_mc_s.yaml", [*given, *opts])

    return run


def test_the_store_has_what_sam3_gives_its_detector(phrases_path: Path, tiny_sam3_path: Path) -> None:
    store = EmbeddingStore(phrases_path / "teacher" / "embeddings", phrases=True)
    phrase = (phrases_path / "val.txt").read_text().splitlines()[3]
    (row,) = store.rows(np.array([phrase.encode()]))
    _, grid = store.decode(store.read(int(row))[None])
    ids, mask = tokenize(build_tokenizer(), phrase)
    detector = build_detector(read_contents(tiny_sam3_path))
    with torch.inference_mode():
        expected = detector.get_text_features(input_ids=ids, attention_mask=mask).pooler_output[0]
    count = int(mask.sum())
    assert grid.shape == (1, 16, 1, LENGTH)
    assert torch.allclose(grid[0, :, 0, :count].T, expected[:count], atol=5e-3)
    assert not grid[0, :, 0, count:].any()


def test_embedding_again_adds_only_what_is_missing_and_refuses_other_settings(
    tmp_path: Path, phrases_path: Path, tiny_sam3_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "train.txt").write_text("a dog\n" + "long " * 20)
    (tmp_path / "val.txt").write_text("a tree\n")
    output = tmp_path / "teacher"
    first = embed_phrases(tmp_path, tiny_sam3_path, output, LENGTH, 64, ONE)
    assert (first.embedded, first.present, len(first.too_long)) == (2, 0, 1)
    (tmp_path / "val.txt").write_text("a tree\na house\n")
    again = embed_phrases(tmp_path, tiny_sam3_path, output, LENGTH, 64, ONE)
    assert (again.embedded, again.present) == (1, 2)
    with pytest.raises(UserError, match="was begun with other settings"):
        embed_phrases(tmp_path, tiny_sam3_path, output, 32, 64, ONE)
    assert verify_store(output / "embeddings").records == 3
    with pytest.raises(UserError, match="is a store of phrases: give one of images"):
        EmbeddingStore(output / "embeddings")


def test_shuffled_words_stay_whole() -> None:
    tokenizer = build_tokenizer()
    ends = word_ends(tokenizer)
    ids, fits = tokenize_phrases(tokenizer, ["a rusty aardwolf near pamperers", "cat", "red cat"], 16, 49407)
    assert fits.all()
    lengths = valid_tokens(ids).sum(1)
    torch.manual_seed(0)
    seen = set()
    for _ in range(20):
        shuffled = shuffle_words(ids, lengths, ends)
        assert torch.equal(valid_tokens(shuffled), valid_tokens(ids))
        words = [tokenizer.decode(row, skip_special_tokens=True).split() for row in shuffled.tolist()]
        expected = [["a", "aardwolf", "near", "pamperers", "rusty"], ["cat"], ["cat", "red"]]
        assert [sorted(row) for row in words] == expected
        seen.add(tuple(words[0]))
    assert len(seen) > 10


def test_losses_count_valid_tokens_alone_and_consistency_once() -> None:
    generator = torch.Generator().manual_seed(0)
    student, targets = (torch.randn(2, 4, 1, 6, generator=generator) for _ in range(2))
    shuffled = torch.randn(2, 4, 1, 6, generator=generator)
    valid = torch.arange(6) < torch.tensor([[3], [5]])
    objective = PhraseObjective(FeatureObjective({"mse": 1.0, "cosine": 2.0}), 0.5)
    weights, shown = torch.ones(2), Shown([], torch.empty(0), [], 0)
    alone = objective(student, targets, valid[:, None], weights, shown)
    both = objective(torch.cat([student, shuffled]), targets, valid[:, None], weights, shown)
    mse, cosine, consistency = [], [], []
    for number, count in enumerate((3, 5)):
        one, other, third = (part[number, :, 0, :count].T for part in (student, targets, shuffled))
        mse.append((one - other).square().mean())
        cosine.append(1 - torch.cosine_similarity(one, other, dim=1).mean())
        consistency.append((one.mean(0) - third.mean(0)).square().mean())
    assert torch.allclose(alone["mse"], torch.stack(mse).mean())
    assert torch.allclose(alone["loss"], torch.stack(mse).mean() + 2 * torch.stack(cosine).mean())
    assert torch.allclose(both["shuffle"], torch.stack(consistency).mean())
    assert torch.allclose(both["loss"], alone["loss"] + 0.5 * torch.stack(consistency).mean())
    student[0, :, 0, 3:] = 100.0
    assert torch.equal(objective(student, targets, valid[:, None], weights, shown)["loss"], alone["loss"])


def test_a_batch_is_never_empty() -> None:
    batch = PhraseCollate(8)([None, None])
    assert batch.pixels.shape == (1, 8)
    assert valid_tokens(batch.pixels).sum() == 2
    assert batch.rows == [-1]


def test_a_disturbed_training_ends_like_an_undisturbed_one(train_text: TrainText, tmp_path: Path) -> None:
    opts = ("DISTILL.SHUFFLE", "0.05", "TRAIN.EMA", "0.9")
    train_text(*opts, "TAG", "whole")
    stopped = train_text(*opts, "TAG", "parts", stop_after=3)
    assert stopped.stopped
    train_text(*opts, "TAG", "parts")
    whole, parts = (tmp_path / "out" / name for name in ("whole", "parts"))
    assert (whole / "metrics.jsonl").read_text() == (parts / "metrics.jsonl").read_text()
    ours, theirs = (load_training_checkpoint(path / "ckpt_epoch_1.pth") for path in (whole, parts))
    for name in ("model", "ema"):
        assert all(torch.equal(ours[name][key], value) for key, value in theirs[name].items())
    best = json.loads((whole / "best.json").read_text())
    assert best["metric"] == "val/loss"


def test_a_student_keeps_its_context_and_its_padding(train_text: TrainText) -> None:
    summary = train_text("MODEL.PADDING", "published", "TRAIN.EPOCHS", "1")
    architecture = load_text_student(summary.checkpoint).architecture
    assert (architecture.context_length, architecture.padding, architecture.embed_dim) == (LENGTH, "published", 16)
    with pytest.raises(UserError, match="not of .*'padding': 'transformers'"):
        train_text("TRAIN.EPOCHS", "1")


def test_a_trained_student_beats_an_untrained_one_and_is_measured_by_length(
    train_text: TrainText, phrases_path: Path
) -> None:
    store = phrases_path / "teacher" / "embeddings"
    cpu = torch.device("cpu")
    figures = []
    for epochs, rate in (("1", "1e-9"), ("6", "1e-2")):
        summary = train_text("TRAIN.EPOCHS", epochs, "TRAIN.BASE_LR", rate, "TRAIN.MIN_LR", "0", "TAG", f"for{epochs}")
        figures.append(evaluate_phrases(summary.checkpoint, phrases_path, store, cpu))
    untrained, trained = (scores[0] for scores in figures)
    assert trained.mean > untrained.mean + 0.3
    assert trained.mean == pytest.approx(1 - summary.metrics["val/cosine"], abs=1e-3)
    names = [score.name for score in figures[1]]
    assert names == ["student", "mean of each position", "bag of tokens"]
    for score in figures[1]:
        assert sum(count for count, _ in score.by_length.values()) == score.phrases > 30
        weighted = sum(count * mean for count, mean in score.by_length.values()) / score.phrases
        assert score.mean == pytest.approx(weighted)
    positions, bag = figures[1][1:]
    assert bag.mean > positions.mean > 0


def test_the_commands(tmp_path: Path, tiny_sam3_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, store = tmp_path / "phrases", tmp_path / "teacher"
    words = tmp_path / "words.txt"
    words.write_text("a dog\na cat\na car\na hat\na tree\na house\na boat\n")
    command = ["text", "phrases", "--output", str(folder), "--files", str(words), "--val-ratio", "0.4"]
    assert main(command) == 0
    train, val = ((folder / f"{split}.txt").read_text().splitlines() for split in ("train", "val"))
    assert len(train) + len(val) == 7
    assert f"{len(train)} phrases to train on and {len(val)} to validate on" in capsys.readouterr().out
    paths = ["--phrases", str(folder), "--sam3-ckpt", str(tiny_sam3_path), "--output", str(store)]
    assert main(["text", "embed", *paths, "--device", "cpu"]) == 0
    config = ["--cfg", str(CONFIGS / "text" / "es_mc_s.yaml"), "--data-path", str(folder), "--only-cpu"]
    opts = ["MODEL.BACKBONE", "base/16x1x2", "DISTILL.TEACHER_EMBED_PATH", str(store / "embeddings")]
    opts += ["TRAIN.EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0"]
    assert main(["text", "train", *config, "--output", str(tmp_path / "out"), "--opts", *opts]) == 0
    log = (tmp_path / "out" / "log_rank0.txt").read_text()
    assert f"{len(train)} training and {len(val)} validation phrases" in log
    assert " phrases/s ETA" in log
    assert "images" not in log
    measure = ["--student-ckpt", str(tmp_path / "out" / "ckpt_epoch_0.pth"), "--store", str(store / "embeddings")]
    measure += ["--phrases", str(folder), "--output", str(tmp_path / "figures.json"), "--device", "cpu"]
    assert main(["text", "evaluate", *measure]) == 0
    assert "bag of tokens" in capsys.readouterr().out
    assert json.loads((tmp_path / "figures.json").read_text())[0]["phrases"] == len(val)
    words.write_text("a dog\n")
    assert main([*command, "--overwrite"]) == 2
    assert "give more by --files, --categories or --generate" in capsys.readouterr().err


def test_one_kind_of_store_is_not_taken_for_the_other(
    train_text: TrainText, store_path: Path, one_process: Process
) -> None:
    with pytest.raises(UserError, match="is a store of images: give one of phrases"):
        train_text("DISTILL.TEACHER_EMBED_PATH", str(store_path / "embeddings"))
