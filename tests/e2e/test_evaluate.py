"""A student from training to the table, by the commands, in this process."""

import json
from pathlib import Path

import pytest

from efficientsam3.cli import main
from efficientsam3.train.metrics import read_metrics

TINY = ["DATA.IMG_SIZE", 224, "DISTILL.EMBED_SIZE", 16, "DISTILL.EMBED_DIM", 64, "DATA.NUM_WORKERS", 0]


def command(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_sam3_path: Path, photographs_path: Path) -> Path:
    """The output of a training that probed its masks with SAM3's own decoder."""
    output = tmp_path_factory.mktemp("evaluate")
    data, cpu = ["--data-path", photographs_path, "--batch-size", 2], ["--only-cpu", "--opts", *TINY]
    export = ["--cfg", "stage1/configs/teacher/sam_vit_huge_sa1b.yaml", "--resume", tiny_sam3_path]
    assert command("embed", *export, *data, "--output", output / "teacher", *cpu) == 0
    epochs = ["TRAIN.EPOCHS", 2, "TRAIN.WARMUP_EPOCHS", 0, "DISTILL.TEACHER_EMBED_PATH", output / "teacher/embeddings"]
    probe = ["PROBE.DECODER", tiny_sam3_path, "PROBE.IMAGES", 2, "PROBE.OBJECTS", 2]
    train = ["--cfg", "stage1/configs/es_ev_s.yaml", "--pretrained", "false", "--output", output / "student"]
    assert command("train", *train, *data, *cpu, *epochs, *probe) == 0
    return output


def test_masks_are_probed_after_each_epoch(trained: Path) -> None:
    epochs = read_metrics(trained / "student" / "metrics.jsonl")
    assert len(epochs) == 2
    for figures in epochs:
        probed = {name: value for name, value in figures.items() if name.startswith("probe/")}
        assert len(probed) == 6
        assert all(0 <= value <= 1 for value in probed.values())
    # The teacher does not change.
    assert epochs[0]["probe/teacher_box_miou"] == epochs[1]["probe/teacher_box_miou"] > 0


def test_a_decoder_that_does_not_fit_is_refused_before_training(
    trained: Path, photographs_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", "--cfg", "stage1/configs/es_ev_s.yaml", "--pretrained", "false", "--only-cpu"]
    paths = ["--data-path", photographs_path, "--output", trained / "never", "--dry-run"]
    store = ["DISTILL.TEACHER_EMBED_PATH", trained / "teacher/embeddings"]
    assert command(*train, *paths, "--opts", *TINY, *store, "PROBE.DECODER", "nowhere.onnx") == 2
    assert "nowhere.onnx is not a file" in capsys.readouterr().err
    assert not (trained / "never").exists()


def test_the_encoder_and_the_merged_model_give_the_same_masks(
    trained: Path, tiny_sam3_path: Path, photographs_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, merged = trained / "student" / "ckpt_epoch_1.pth", trained / "merged.pt"
    assert command("merge", "--student-ckpt", checkpoint, "--sam3-ckpt", tiny_sam3_path, "--output", merged) == 0
    models = [f"student={checkpoint}", f"merged={merged}", f"sam3={tiny_sam3_path}", trained / "teacher/embeddings"]
    options = ["--data", photographs_path, "--decoder", tiny_sam3_path, "--max-objects", 3, "--device", "cpu"]
    assert command("evaluate", *models, *options, "--out", trained / "evaluated") == 0
    results = json.loads((trained / "evaluated" / "results.json").read_text())
    rows = {(row["model"], row["prompt"]): row for row in results["summary"]}
    assert len(rows) == 8
    for prompt in ("box", "point"):
        assert rows["student", prompt]["objects"] == 9
        assert rows["merged", prompt]["agreement"] == pytest.approx(1, abs=0.02)
        # Two ways to the teacher's embedding, one of them through float16.
        embedded = rows["teacher/embeddings", prompt]["miou"]
        assert rows["sam3", prompt]["miou"] == pytest.approx(embedded, abs=0.02)
    assert "merged" in capsys.readouterr().out
    report = (trained / "evaluated" / "report.html").read_text()
    assert "<h2>Training</h2>" in report
    assert "box_miou" in report
