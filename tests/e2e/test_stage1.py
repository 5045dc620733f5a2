"""Stage 1 by its documented commands, on two processes; in this one where a process of its own proves nothing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from efficientsam3.cli import main

EXPORT = "stage1/scripts/save_stage1_embeddings.sh"
TEACHER_CFG = "stage1/configs/teacher/sam_vit_huge_sa1b.yaml"
RECORD = 4 + 2 * 64 * 16 * 16


def command(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def read_store(directory: Path) -> dict[str, bytes]:
    """Read as anyone would who knows the published format: seek to index * record size."""
    records = {}
    for keys in sorted(directory.glob("rank*-keys.txt")):
        values = keys.with_name(keys.name.replace("-keys.txt", "-values.bin")).read_bytes()
        for index, key in enumerate(keys.read_text().splitlines()):
            assert key not in records
            records[key] = values[index * RECORD : (index + 1) * RECORD]
    return records


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, run, tiny_sam3_path, photographs_path):
    """The folder in which the steps below run one after the other."""
    root = tmp_path_factory.mktemp("stage1")
    shutil.copytree(photographs_path, root / "data")
    shutil.copy(tiny_sam3_path, root / "sam3.pt")
    return root


@pytest.fixture(scope="module")
def tiny():
    return ["--opts", "DATA.IMG_SIZE", 224, "DISTILL.EMBED_SIZE", 16, "DISTILL.EMBED_DIM", 64, "DATA.NUM_WORKERS", 1]


@pytest.fixture(scope="module")
def exported(workplace, run, tiny):
    output = workplace / "output" / "stage1_teacher"
    where = [f"CFG={TEACHER_CFG}", f"DATA_PATH={workplace / 'data'}", f"OUTPUT={output}"]
    run("bash", EXPORT, *where, "GPUS=2", "BATCH_SIZE=2", "--resume", workplace / "sam3.pt", *tiny)
    return output


@pytest.fixture(scope="module")
def trained(workplace, run, tiny, exported):
    """By torchrun itself; test_interrupted_training.py has the launcher."""
    output = workplace / "output" / "stage1" / "repvit_m1"
    flags = ["--cfg", "stage1/configs/es_ev_s.yaml", "--data-path", workplace / "data", "--output", output]
    flags += ["--batch-size", 2, "--pretrained", "false", *tiny, "DISTILL.TEACHER_EMBED_PATH", exported / "embeddings"]
    flags += ["TRAIN.EPOCHS", 2, "TRAIN.WARMUP_EPOCHS", 0]
    run("torchrun", "--standalone", "--nproc_per_node", 2, "stage1/train_stage1.py", *flags)
    return output


def test_the_export_is_complete_and_documented(exported: Path) -> None:
    names = {path.name for path in exported.iterdir()}
    assert {"config.json", "log_rank0.txt", "log_rank1.txt", "embeddings"} <= names
    assert json.loads((exported / "config.json").read_text())["DISTILL"]["EMBED_DIM"] == 64
    assert {"rank0-keys.txt", "rank0-values.bin", "rank1-keys.txt"} <= {
        p.name for p in (exported / "embeddings").iterdir()
    }
    assert sorted(read_store(exported / "embeddings")) == sorted(f"sa_{number}" for number in range(1, 10))


def test_one_process_gives_the_same_records(workplace, tiny, exported) -> None:
    output = workplace / "output" / "plain"
    where = ["--cfg", TEACHER_CFG, "--data-path", workplace / "data", "--output", output]
    assert command("export", *where, "--batch-size", 2, "--resume", workplace / "sam3.pt", *tiny) == 0
    plain, parallel = read_store(output / "embeddings"), read_store(exported / "embeddings")
    assert plain.keys() == parallel.keys()
    for key in plain:
        assert plain[key][:4] == parallel[key][:4]
        ours, theirs = (np.frombuffer(r[key][4:], "<f2").astype(np.float32) for r in (plain, parallel))
        assert np.linalg.norm(ours - theirs) <= 2e-3 * np.linalg.norm(theirs), key


def test_the_same_export_again_finds_nothing_left_to_do(workplace, tiny, exported) -> None:
    before = read_store(exported / "embeddings")
    where = ["--cfg", TEACHER_CFG, "--data-path", workplace / "data", "--output", exported]
    assert command("export", *where, "--resume", workplace / "sam3.pt", *tiny) == 0
    assert read_store(exported / "embeddings") == before
    assert "9 in the store already, 0 to embed" in (exported / "log_rank0.txt").read_text()


def test_saved_embeddings_are_checked(workplace, tiny, exported) -> None:
    where = ["--cfg", TEACHER_CFG, "--data-path", workplace / "data", "--output", exported]
    assert command("export", *where, "--check-saved-embed", "--resume", workplace / "sam3.pt", *tiny) == 0
    assert "9 of 9 records agree with the teacher" in (exported / "log_rank0.txt").read_text()


def test_the_training_leaves_what_is_documented(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {
        "config.json",
        "log_rank0.txt",
        "log_rank1.txt",
        "ckpt_epoch_0.pth",
        "ckpt_epoch_1.pth",
        "metrics.jsonl",
    } <= names
    metrics = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in metrics] == [0, 1]
    assert metrics[1]["train/loss"] < metrics[0]["train/loss"]
    content = torch.load(trained / "ckpt_epoch_1.pth", weights_only=True)
    assert {key.split(".")[0] for key in content["model"]} == {"backbone", "head"}


def test_a_training_resumes_by_itself(workplace, tiny, exported, trained, capsys) -> None:
    flags = ["--cfg", "stage1/configs/es_ev_s.yaml", "--data-path", workplace / "data", "--output", trained]
    flags += ["--batch-size", 2, "--pretrained", "false"]
    more = [*tiny, "DISTILL.TEACHER_EMBED_PATH", exported / "embeddings", "TRAIN.EPOCHS", 3, "TRAIN.WARMUP_EPOCHS", 0]
    assert command("train", *flags, *more) == 2
    assert "TRAIN.EPOCHS: 2 -> 3; images a step: 4 -> 2" in capsys.readouterr().err
    assert command("train", "--allow-config-change", *flags, *more) == 0
    assert "continuing from" in capsys.readouterr().err
    assert (trained / "ckpt_epoch_2.pth").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["GPUS=none"], "GPUS=none"),
        (["GPU=1"], "GPU is not a key of the launchers"),
        (["--resume", "absent.pt"], "absent.pt does not exist"),
    ],
)
def test_the_launcher_returns_2_with_one_sentence(workplace, run, change, named) -> None:
    output = workplace / "output" / "refused"
    where = [f"CFG={TEACHER_CFG}", f"DATA_PATH={workplace / 'data'}", f"OUTPUT={output}", "GPUS=1"]
    done = run("bash", EXPORT, *where, "--resume", workplace / "sam3.pt", *change, code=2)
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert not output.exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--cfg", "absent.yaml"], "absent.yaml is not a file"),
        (["--data-path", "absent"], "absent"),
        (["--opts", "DATA.IMG_SIZES", "3"], "did you mean DATA.IMG_SIZE"),
    ],
)
def test_a_dry_run_returns_2_with_one_sentence(workplace, change, named, capsys) -> None:
    output = workplace / "output" / "refused"
    where = ["--cfg", TEACHER_CFG, "--data-path", workplace / "data", "--output", output, "--dry-run", 1]
    assert command("export", *where, "--resume", workplace / "sam3.pt", *change) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1
    assert not output.exists()


def test_synchronised_batch_norm_on_a_cpu_is_refused(workplace, tiny, capsys) -> None:
    where = [
        "--cfg",
        "stage1/configs/es_ev_s.yaml",
        "--data-path",
        workplace / "data",
        "--output",
        workplace / "refused",
    ]
    assert command("train", *where, "--use-sync-bn", "--only-cpu", "--dry-run", 1, *tiny) == 2
    error = capsys.readouterr().err
    assert "--use-sync-bn needs GPUs" in error
    assert error.count("\n") == 1


def test_debug_shows_the_traceback(run) -> None:
    done = run("python", "stage1/train_stage1.py", "--cfg", "absent.yaml", "--debug", code=1)
    assert "Traceback" in done.stderr
