"""A text student in the place of SAM3's text encoder: native, Hugging Face, fused, and what answers by it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Sam3Config, Sam3LiteTextModel, Sam3Processor, Sam3VideoModel

from efficientsam3.checkpoints.reading import read_tensors
from efficientsam3.checkpoints.sam3_keys import TEXT_PREFIX
from efficientsam3.checkpoints.text_keys import to_native_text
from efficientsam3.export.onnx.run import export_onnx
from efficientsam3.merge.fuse import fuse
from efficientsam3.merge.run import merge
from efficientsam3.models.student import StudentArchitecture
from efficientsam3.models.text_student import TextStudent
from efficientsam3.models.text_students import Padding, TextArchitecture
from efficientsam3.predict.onnx_sam3 import OnnxSAM3
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.contents import metadata_path, read_contents, student_config, with_text_student
from efficientsam3.sam3.efficientsam3 import EfficientSAM3
from efficientsam3.sam3.text import build_tokenizer, tokenize_phrases

Make = Callable[..., Path]
PHRASE = "a rusty dog"


def text_checkpoint(
    path: Path, backbone: str = "mct/32x3x4", length: int = 32, padding: Padding = "transformers"
) -> Path:
    """What training writes of a text student, as far as merging reads it."""
    torch.manual_seed(1)
    student = TextStudent(TextArchitecture(backbone, 16, length, padding))
    for name, value in student.state_dict().items():
        if name.endswith("layer_scale"):
            value.fill_(0.5)  # or the convolutions, and so the padding, would hardly matter
    torch.save({"model": student.state_dict(), "architecture": asdict(student.architecture)}, path)
    return path


def expected_features(path: Path) -> torch.Tensor:
    """(tokens, width) the student's own features of PHRASE."""
    content = torch.load(path, weights_only=True)
    architecture = TextArchitecture(**content["architecture"])
    ids, _ = tokenize_phrases(build_tokenizer(), [PHRASE], architecture.context_length, architecture.pad_id)
    with torch.inference_mode():
        return TextStudent.from_state(architecture, content["model"])(ids)[0, :, 0, :5].T


@torch.inference_mode()
def check_answers(model: Path, text: Path) -> None:
    features, mask = EfficientSAM3.from_pretrained(model, "cpu").text_features(PHRASE)
    expected = expected_features(text)
    assert mask.sum() == len(expected) == 5
    assert torch.allclose(features[0, :5], expected, atol=1e-5)


@pytest.fixture(scope="module")
def native(
    tiny_sam3_path: Path, student_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A text student that padding matters to, and a native file with it."""
    folder = tmp_path_factory.mktemp("native")
    text = text_checkpoint(folder / "text.pth", "mct/128x3x2", 16, "published")
    merge(student_checkpoint(), tiny_sam3_path, folder / "merged.pt", text_ckpt=text)
    return text, folder / "merged.pt"


def test_a_native_file_has_the_published_names_and_answers_as_the_student(
    native: tuple[Path, Path], tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path
) -> None:
    text, output = native
    tensors, source = read_tensors(output), read_tensors(tiny_sam3_path)
    expected = to_native_text(torch.load(text, weights_only=True)["model"])
    assert {key for key in tensors if key.startswith(TEXT_PREFIX)} == {TEXT_PREFIX + key for key in expected}
    assert all(torch.equal(tensors[TEXT_PREFIX + key], value) for key, value in expected.items())
    metadata = json.loads(metadata_path(output).read_text())
    assert metadata["text"] == asdict(TextArchitecture("mct/128x3x2", 16, 16, "published"))
    check_answers(output, text)
    account = merge(student_checkpoint(), tiny_sam3_path, tmp_path / "dry.pt", text_ckpt=text, dry_run=True)
    own = [key for key in source if key.startswith(TEXT_PREFIX)]
    lines = account.lines()
    assert f"{len(own):5d} tensors" in next(line for line in lines if line.endswith("SAM3's text encoder"))
    assert f"{len(expected):5d} tensors" in next(line for line in lines if "text student mct/128x3x2" in line)
    assert account.kept.keys() == {"image", "tracker"}
    assert sum(count for count, _ in account.kept.values()) + account.removed_tensors + len(own) == len(source)


def test_a_file_that_nothing_describes_is_taken_for_a_published_one(native: tuple[Path, Path], tmp_path: Path) -> None:
    text, output = tmp_path / "text.pth", tmp_path / "merged.pt"
    for source, target in zip(native, (text, output), strict=True):
        shutil.copyfile(source, target)
    metadata = json.loads(metadata_path(native[1]).read_text())
    described = metadata.pop("text")
    metadata_path(output).write_text(json.dumps(metadata))
    assert read_contents(output).text == TextArchitecture(**described)
    metadata_path(output).write_text(json.dumps(metadata | {"text": described | {"context_length": 32}}))
    with pytest.raises(UserError, match="is not the one that .*merged.pt.json describes"):
        read_contents(output)


@torch.inference_mode()
def test_a_directory_is_read_by_transformers_with_nothing_missing(
    tmp_path: Path, tiny_sam3_path: Path, student_checkpoint: Make
) -> None:
    text, directory = text_checkpoint(tmp_path / "text.pth"), tmp_path / "hf"
    merge(student_checkpoint(), tiny_sam3_path, directory, format="hf", text_ckpt=text)
    model, loading = Sam3LiteTextModel.from_pretrained(directory, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert not loading["mismatched_keys"]
    processor = Sam3Processor.from_pretrained(directory)
    inputs = processor(text=[PHRASE], return_tensors="pt")
    found = model.get_text_features(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    assert torch.allclose(found.pooler_output[0, :5], expected_features(text), atol=1e-5)
    assert len(AutoTokenizer.from_pretrained(directory)) == 49408
    check_answers(directory, text)
    assert read_contents(directory).text == TextArchitecture("mct/32x3x4", 16)
    config = read_contents(directory).config
    assert config.detector_config.model_type == "sam3_lite_text"
    with torch.device("meta"):
        assert isinstance(Sam3VideoModel(config).detector_model, Sam3LiteTextModel)


def test_a_fused_model_keeps_it(native: tuple[Path, Path], tmp_path: Path) -> None:
    text, merged = native
    fuse(merged, tmp_path / "fused.pt")
    model = EfficientSAM3.from_pretrained(tmp_path / "fused.pt", "cpu")
    features, _ = model.text_features(PHRASE)
    assert torch.allclose(features[0, :5], expected_features(text), atol=1e-5)
    image = torch.randint(0, 255, (3, 100, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert len(model.encode(image).segment(text=PHRASE, threshold=0.0).scores) == 20


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        (
            {"length": 16},
            {"format": "hf"},
            "takes 16 tokens, padded as transformers, and transformers' processor",
        ),
        ({"padding": "published"}, {"format": "hf"}, "padded as published, and transformers' processor gives 32"),
        ({}, {"keep": "image,tracker"}, "--text-ckpt needs the part text"),
    ],
)
def test_what_would_not_answer_as_trained_is_refused(
    tmp_path: Path,
    tiny_sam3_path: Path,
    student_checkpoint: Make,
    text: dict[str, object],
    options: dict[str, object],
    reason: str,
) -> None:
    path = text_checkpoint(tmp_path / "text.pth", **text)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=reason):
        merge(student_checkpoint(), tiny_sam3_path, tmp_path / "out", text_ckpt=path, **options)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_kind_or_width_is_refused(
    tmp_path: Path, tiny_sam3_path: Path, student_checkpoint: Make
) -> None:
    with pytest.raises(UserError, match="holds no text student"):
        merge(student_checkpoint(), tiny_sam3_path, tmp_path / "out.pt", text_ckpt=student_checkpoint())
    student = TextStudent(TextArchitecture("base/16x1x2", 8))
    wide = tmp_path / "wide.pth"
    torch.save({"model": student.state_dict(), "architecture": asdict(student.architecture)}, wide)
    with pytest.raises(UserError, match="gives 8 channels, SAM3 in .* takes 16"):
        merge(student_checkpoint(), tiny_sam3_path, tmp_path / "out.pt", text_ckpt=wide)


def test_the_smallest_published_detector_has_its_size() -> None:
    config = Sam3Config()
    config.vision_config.backbone_config = student_config(StudentArchitecture("efficientvit_b0"))
    with torch.device("meta"):
        model = Sam3LiteTextModel(with_text_student(config, TextArchitecture("mobileclip_s0", context_length=16)))
    assert sum(parameter.numel() for parameter in model.parameters()) == 93_210_278


@pytest.mark.slow
def test_its_onnx_graphs_pad_as_the_student_was_trained(native: tuple[Path, Path], tmp_path: Path) -> None:
    text, merged = native
    manifest = export_onnx(merged, tmp_path / "onnx")
    assert manifest.tokenizer is not None
    assert (manifest.tokenizer.context_length, manifest.tokenizer.pad_id) == (16, 0)
    found = OnnxSAM3.from_pretrained(tmp_path / "onnx")._encode_text(PHRASE)["text_features"]
    assert torch.allclose(torch.from_numpy(found)[0, :5], expected_features(text), atol=1e-5)
