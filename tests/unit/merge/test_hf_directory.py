"""The Hugging Face directory: what transformers reads out of it is what our own loader reads out of the native file."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import Sam3Model, Sam3Processor, Sam3TrackerModel, Sam3VideoConfig

from efficientsam3.checkpoints.reading import read_tensors
from efficientsam3.merge import hf_directory
from efficientsam3.merge.run import merge
from efficientsam3.models.students import named_backbones
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.contents import read_contents
from efficientsam3.sam3.efficientsam3 import EfficientSAM3
from efficientsam3.sam3.torch_calls import ask_detector, ask_tracker, detector_features, tracker_features

Make = Callable[..., Path]
BOX = torch.tensor([[0.5, 0.5, 0.4, 0.3]])


# In the ordinary tests TinyViT alone, which has buffers that no file holds, and the other head.
STUDENTS = [
    *(
        (name, "published") if name == "tiny_vit_5m" else pytest.param((name, "published"), marks=pytest.mark.slow)
        for name in sorted(named_backbones())
    ),
    ("efficientvit_b0", "fpn"),
]


@pytest.fixture(scope="module", params=STUDENTS, ids="-".join)
def student(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Backbone and head: each of the nine, and the other head."""
    backbone, head = request.param
    return backbone, head


@pytest.fixture(scope="module")
def merged(
    student: tuple[str, str], tiny_sam3_path: Path, student_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A student merged native and hf."""
    folder = tmp_path_factory.mktemp("merged")
    for format, name in (("native", "native.pt"), ("hf", "hf")):
        merge(student_checkpoint(*student), tiny_sam3_path, folder / name, format=format)  # type: ignore[arg-type]
    return folder / "native.pt", folder / "hf"


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).norm() <= 1e-5 * expected.norm())


@torch.inference_mode()
def test_the_detector_gives_the_native_files_logits(merged: tuple[Path, Path]) -> None:
    native, directory = merged
    ours = EfficientSAM3.from_pretrained(native, "cpu")
    theirs = Sam3Model.from_pretrained(directory).eval()
    processor = Sam3Processor.from_pretrained(directory)
    pixels = torch.randn(1, 3, 224, 224)
    tokens = ours._models.encoder(pixels).last_hidden_state
    features = detector_features(ours.detector, tokens.transpose(1, 2).unflatten(2, (16, 16)))
    for text, boxes, labels in (("a red sock", None, [-10]), ("visual", BOX, [1])):
        found = ask_detector(
            ours.detector,
            features,
            ours.text_features(text),
            torch.zeros(0, 4) if boxes is None else boxes,
            [] if boxes is None else labels,
        )
        inputs = processor.tokenizer(text, padding="max_length", max_length=32, return_tensors="pt")
        expected = theirs(
            pixel_values=pixels,
            input_boxes=torch.zeros(1, 1, 4) if boxes is None else boxes[None],
            input_boxes_labels=torch.tensor([labels]),
            **inputs,
        )
        for name in ("pred_logits", "pred_boxes", "presence_logits", "pred_masks", "semantic_seg"):
            assert close(getattr(found, name), getattr(expected, name)), (text, name)


@torch.inference_mode()
def test_the_tracker_gives_the_native_files_logits(merged: tuple[Path, Path]) -> None:
    native, directory = merged
    ours = EfficientSAM3.from_pretrained(native, "cpu")
    theirs = Sam3TrackerModel.from_pretrained(directory).eval()
    pixels = torch.randn(1, 3, 224, 224)
    tokens = ours._models.encoder(pixels).last_hidden_state
    features = tracker_features(ours.tracker, tokens.transpose(1, 2).unflatten(2, (16, 16)))
    found = ask_tracker(ours.tracker, features, torch.tensor([[50.0, 60.0]]), [1], None)
    # transformers adds the embedding of "no memory" to a level that it drops: ours is given to both.
    expected = theirs(
        image_embeddings=features,
        input_points=torch.tensor([[[[50.0, 60.0]]]]),
        input_labels=torch.ones(1, 1, 1, dtype=torch.long),
    )
    assert close(found.pred_masks, expected.pred_masks)
    whole = theirs(
        pixel_values=pixels,
        input_points=torch.tensor([[[[50.0, 60.0]]]]),
        input_labels=torch.ones(1, 1, 1, dtype=torch.long),
    )
    assert (found.pred_masks - whole.pred_masks).norm() <= 0.2 * whole.pred_masks.norm()


@torch.inference_mode()
def test_our_loader_reads_the_directory_like_the_native_file(merged: tuple[Path, Path]) -> None:
    pixels = torch.randint(0, 256, (3, 100, 150), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    answers = []
    for path in merged:
        image = EfficientSAM3.from_pretrained(path, "cpu").encode(pixels)
        answers.append(image.segment("a dog", boxes=[(10, 10, 90, 90)], threshold=0.0))
    # Logits within 1e-5 of each other may fall on the two sides of 0: equal on current PyTorch, not on 2.6.
    assert (answers[0].masks == answers[1].masks).float().mean() > 0.999
    assert close(answers[0].scores, answers[1].scores)


def test_nothing_is_missing_or_left_over_for_transformers(merged: tuple[Path, Path]) -> None:
    for cls in (Sam3Model, Sam3TrackerModel):
        _, info = cls.from_pretrained(merged[1], output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["mismatched_keys"]
        assert not info["unexpected_keys"]


def test_it_loads_in_a_fresh_process_after_importing_the_package_alone(
    tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path
) -> None:
    directory = tmp_path / "hf"
    merge(student_checkpoint(), tiny_sam3_path, directory, format="hf")
    code = (
        "import efficientsam3\nfrom transformers import AutoConfig, Sam3Model\n"
        f"AutoConfig.from_pretrained({str(directory)!r})\n"
        f"print(type(Sam3Model.from_pretrained({str(directory)!r}).vision_encoder.backbone).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "EfficientSam3StudentModel"


def test_config_and_card_tell_where_it_came_from(merged: tuple[Path, Path], student: tuple[str, str]) -> None:
    config = json.loads((merged[1] / "config.json").read_text())
    assert config["model_type"] == Sam3VideoConfig.model_type
    architecture = config["efficientsam3"]["architecture"]
    assert (architecture["backbone"], architecture["head"]) == student
    assert config["detector_config"]["vision_config"]["backbone_config"]["model_type"] == "efficientsam3_student"
    assert "SAM licence" in (merged[1] / "README.md").read_text()


def test_a_directory_of_sam3_is_a_source_too(
    merged: tuple[Path, Path],
    student: tuple[str, str],
    tiny_sam3_path: Path,
    student_checkpoint: Make,
    tmp_path: Path,
) -> None:
    """SAM3 as facebook/sam3 has it: made by putting the trunk back where the student is."""
    source = read_contents(tiny_sam3_path)
    folder = tmp_path / "sam3"
    folder.mkdir()
    hf_directory._write_shards(folder, source.tensors, folder)
    (folder / "config.json").write_text(source.config.to_json_string(use_diff=False))
    account = merge(student_checkpoint(*student), folder, tmp_path / "out", format="hf")
    assert account.removed_tensors > 0
    found, expected = read_tensors(tmp_path / "out"), read_tensors(merged[1])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    with pytest.raises(UserError, match=r"lacks tensors of Meta's layout.*give sam3\.pt"):
        merge(student_checkpoint(*student), folder, tmp_path / "out.pt")


def test_shards_are_whole_and_small(
    tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_directory, "_SHARD_BYTES", 1_000_000)
    merge(student_checkpoint(), tiny_sam3_path, tmp_path / "out", format="hf", dtype=torch.bfloat16)
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2
    assert len(Sam3Model.from_pretrained(tmp_path / "out").state_dict()) > 100


def test_the_old_directory_stays_when_something_fails(
    merged: tuple[Path, Path],
    tiny_sam3_path: Path,
    student_checkpoint: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    merge(student_checkpoint(), tiny_sam3_path, tmp_path / "out", format="hf")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf_directory, "save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        merge(student_checkpoint("repvit_m0_9"), tiny_sam3_path, tmp_path / "out", format="hf")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_of_something_else_is_not_replaced(
    tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(UserError, match="would replace .*chapter1.tex"):
        merge(student_checkpoint(), tiny_sam3_path, tmp_path / "thesis", format="hf")
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"keep": ["image"]}, "--keep needs --format native"), ({"target_prefix": "x."}, "need --format native")],
)
def test_options_without_a_meaning_are_refused(
    options: dict[str, object], message: str, tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        merge(student_checkpoint(), tiny_sam3_path, tmp_path / "x", format="hf", **options)  # type: ignore[arg-type]
