"""A store and checkpoints that older code wrote are read and resumed; see tests/data/older/README.md."""

import json
import lzma
import shutil
from pathlib import Path

import pytest
import torch

from efficientsam3.checkpoints.training import load_training_checkpoint, save_training_checkpoint
from efficientsam3.config.load import load_config
from efficientsam3.config.schema import TrainConfig
from efficientsam3.models.student_files import read_student
from efficientsam3.runtime.distributed import Process
from efficientsam3.runtime.errors import UserError
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.store.repair import verify_store
from efficientsam3.store.statistics import store_statistics
from efficientsam3.train.plan import plan_training
from efficientsam3.train.run import check_training, train
from two_processes import fork_two
from unit.train.record_training import train_on_two

OLDER = Path(__file__).parents[2] / "data" / "older"
_COMMON = {
    "DATA": {
        "DATA_PATH": "pictures",
        "IMG_SIZE": 64,
        "NUM_WORKERS": 0,
        "RESIZE": "pad",
        "MEAN": [0.485, 0.456, 0.406],
        "STD": [0.229, 0.224, 0.225],
    },
    "DISTILL": {"EMBED_SIZE": 8, "EMBED_DIM": 16, "TEACHER_EMBED_PATH": "store/embeddings"},
    "MODEL": {"BACKBONE": "timm/test_efficientnet", "PRETRAINED": False},
    "TRAIN": {"EPOCHS": 3, "WARMUP_EPOCHS": 0.5, "BASE_LR": 3e-4, "LR_SCALING": "none"},
    "DEVICE": "cpu",
    "PRINT_FREQ": 1,
}
OWN = {
    "one": {"SEED": 3, "MODEL.NAME": "one", "MODEL.HEAD": "fpn", "DISTILL.NORMALIZE": "channel"},
    "two": {"SEED": 4, "MODEL.NAME": "two", "DISTILL.NORMALIZE": "none"},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where those trainings ran, with their data; checkpoints name paths relative to it."""
    shutil.copytree(OLDER / "store", tmp_path / "store")
    shutil.copytree(OLDER / "dataset", tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def begun(name: str, folder: Path) -> Path:
    """The output folder of a training that was stopped within its second epoch."""
    output = folder / name
    output.mkdir()
    shutil.copy(OLDER / name / "metrics.jsonl", output)
    for packed in (OLDER / name).glob("*.xz"):
        (output / packed.stem).write_bytes(lzma.decompress(packed.read_bytes()))
    return output


@pytest.mark.parametrize(("name", "processes"), [("one", 1), ("one", 2), ("two", 2), ("two", 1)])
def test_a_training_resumes_with_the_figures_that_the_older_code_would_have_had(
    name: str, processes: int, folder: Path, one_process: Process
) -> None:
    output = begun(name, folder)
    # `one` takes 2 images a step, `two` 4, on any number of processes.
    batch, accumulation = (2 // processes, 1) if name == "one" else (2, 2 // processes)
    (folder / "train.yaml").write_text(json.dumps(_COMMON))
    sizes = {"DATA.BATCH_SIZE": batch, "TRAIN.ACCUMULATION_STEPS": accumulation}
    config = load_config(TrainConfig, folder / "train.yaml", flags={**OWN[name], **sizes, "OUTPUT": output})
    if processes == 2:
        fork_two(train_on_two, config.model_dump_json())
    else:
        train(config, one_process)
    found, expected = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (output / "metrics.jsonl", OLDER / "expected" / f"{name}_by_{processes}.jsonl")
    )
    assert len(found) == 3
    for ours, theirs in zip(found, expected, strict=True):
        # Digit for digit on the processor that made them. Another's rounding makes up to 1.3e-3 (SSE4.1 instead of
        # AVX-512); sums or moments that are lost make 6.5e-3 and more.
        assert ours == pytest.approx(theirs, rel=3e-3)


def test_a_training_begun_with_raw_targets_is_not_continued_with_standardised_ones(folder: Path) -> None:
    output = begun("two", folder)
    (folder / "train.yaml").write_text(json.dumps(_COMMON))
    flags = {**OWN["two"], "DATA.BATCH_SIZE": 4, "OUTPUT": output, "DISTILL.NORMALIZE": None}
    with pytest.raises(
        UserError, match=r"\(DISTILL\.NORMALIZE: none -> channel\): .*with --opts DISTILL\.NORMALIZE none"
    ):
        check_training(plan_training(load_config(TrainConfig, folder / "train.yaml", flags=flags)))


def test_a_store_is_read_whole(folder: Path) -> None:
    store = EmbeddingStore(folder / "store" / "embeddings")
    assert len(store) == 17
    records = torch.stack([store.read(row) for row in range(len(store))])  # each with its checksum
    seeds, embeddings = store.decode(records)
    assert len(set(seeds.tolist())) == 17
    assert embeddings.shape == (17, 16, 8, 8)
    assert embeddings.isfinite().all()
    assert store_statistics(store.directory).cells > 0
    assert not verify_store(store.directory).damaged


def test_a_student_is_read_from_a_checkpoint(folder: Path) -> None:
    [path] = begun("one", folder).glob("ckpt_*.pth")
    assert "normalisation" in load_training_checkpoint(path)
    file = read_student(path)
    assert file.backbone == "timm/test_efficientnet"
    assert file.architecture is not None


def test_recorded_settings_without_effect_are_no_change(folder: Path) -> None:
    output = begun("one", folder)
    [path] = output.glob("ckpt_*.pth")
    content = load_training_checkpoint(path)
    config = {**content["config"], "TEACHER": {"NAME": "other", "RESUME": "other.pt"}}
    save_training_checkpoint(path, {**content, "config": config})
    (folder / "train.yaml").write_text(json.dumps(_COMMON))
    flags = {**OWN["one"], "DATA.BATCH_SIZE": 2, "OUTPUT": output}
    check_training(plan_training(load_config(TrainConfig, folder / "train.yaml", flags=flags)))
    with pytest.raises(UserError, match="SEED: 3 -> 5"):
        check_training(plan_training(load_config(TrainConfig, folder / "train.yaml", flags={**flags, "SEED": 5})))
