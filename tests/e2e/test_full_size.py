"""The documented commands at full size: a 3.45 GB sam3.pt, 72x72x1024 embeddings, the nine configs."""

import json
from pathlib import Path

import pytest
import torch

from efficientsam3.models.students import STUDENTS

REFERENCE = Path(__file__).parents[3] / "shared" / "sam3_reference"
TRUNK = "detector.backbone.vision_backbone.trunk."
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not REFERENCE.is_dir(), reason="needs shared/sam3_reference beside the checkout"),
]


@pytest.fixture(scope="module")
def full_sam3(tmp_path_factory, run) -> Path:
    """A stand-in for Meta's file with every key, shape and dtype of it."""
    path = tmp_path_factory.mktemp("full") / "sam3.pt"
    run("python", REFERENCE / "make_sam3_like.py", path, timeout=600)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory, run, full_sam3) -> Path:
    """A folder with two photographs in `data` and their embeddings in `teacher`, by the shipped configuration."""
    from efficientsam3.testing.sample_images import write_sample_images

    root = tmp_path_factory.mktemp("stage1")
    write_sample_images(root / "data", train=1, val=1)
    script = [
        "bash",
        "stage1/scripts/save_stage1_embeddings.sh",
        f"DATA_PATH={root / 'data'}",
        f"OUTPUT={root / 'teacher'}",
    ]
    run(*script, "GPUS=1", "BATCH_SIZE=1", "--resume", full_sam3, timeout=1200)
    return root


def test_the_store_has_the_published_record_size(exported: Path) -> None:
    embeddings = exported / "teacher" / "embeddings"
    assert (embeddings / "rank0-values.bin").stat().st_size == 2 * 10_616_836
    assert len((embeddings / "rank0-keys.txt").read_text().splitlines()) == 2


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_of_every_config_trains_and_merges(
    exported: Path, run, full_sam3: Path, tmp_path: Path, name: str
) -> None:
    train = [
        "python",
        "stage1/train_stage1.py",
        "--cfg",
        f"stage1/configs/{name}.yaml",
        "--data-path",
        exported / "data",
    ]
    brief = [
        "DISTILL.TEACHER_EMBED_PATH",
        exported / "teacher" / "embeddings",
        "TRAIN.EPOCHS",
        1,
        "TRAIN.WARMUP_EPOCHS",
        0,
    ]
    run(*train, "--output", tmp_path / name, "--pretrained", "false", "--opts", *brief, timeout=1200)
    merged = tmp_path / "merged.pt"
    command = ["python", "stage1/convert_stage1_weights.py", "--student-ckpt", tmp_path / name / "ckpt_epoch_0.pth"]
    run(*command, "--sam3-ckpt", full_sam3, "--output", merged, timeout=1200)
    expected = json.loads((REFERENCE / "sam3_pt_tensors.json").read_text())
    student = json.loads((REFERENCE / "student_tensors.json").read_text())[STUDENTS[name].backbone]
    expected = {key: fact[0] for key, fact in expected.items() if not key.startswith(TRUNK)}
    expected |= {f"{TRUNK}model.{key}": fact[0] for key, fact in student.items()}
    found = torch.load(merged, weights_only=True, mmap=True)
    assert {key: list(value.shape) for key, value in found.items()} == expected
    merged.unlink()
