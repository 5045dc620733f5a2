"""Merging: every tensor accounted for, the output verified, broken inputs refused with nothing written."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from efficientsam3.benchmark.parameters import select_students
from efficientsam3.checkpoints.reading import read_tensors
from efficientsam3.checkpoints.sam3_keys import STUDENT_PREFIX, TEXT_PREFIX
from efficientsam3.checkpoints.sam3_tensors import TRUNK_PREFIX
from efficientsam3.checkpoints.standardisation import Standardisation
from efficientsam3.checkpoints.writing import _ReleasingFile
from efficientsam3.merge import native_file
from efficientsam3.merge.run import merge
from efficientsam3.models.heads import HEADS
from efficientsam3.models.student import Student, StudentArchitecture, check_student_grid, timm_name
from efficientsam3.models.student_files import load_student_state, to_published_layout
from efficientsam3.models.students import STUDENTS, NamedStudent, backbone_of
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.own_files import LIST_NAME, write_own_text
from efficientsam3.sam3.build import build_models
from efficientsam3.sam3.contents import read_contents
from efficientsam3.sam3.parts import VISUAL_PROMPT_KEY
from efficientsam3.testing.tiny_sam3 import tiny_sam3
from tiny import NAMED_BACKBONES
from unit.conftest import training_checkpoint

Make = Callable[..., Path]


def no_trace(folder: Path, *allowed: str) -> bool:
    return sorted(child.name for child in folder.iterdir() if child.name != LIST_NAME) == sorted(allowed)


@pytest.mark.parametrize("backbone", NAMED_BACKBONES)
def test_the_nine_keep_every_other_tensor_bit_by_bit(
    backbone: str, tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path
) -> None:
    account = merge(student_checkpoint(backbone), tiny_sam3_path, tmp_path / "out.pt")
    merged, source = read_tensors(tmp_path / "out.pt"), read_tensors(tiny_sam3_path)
    student = torch.load(student_checkpoint(backbone), weights_only=True)["model"]
    published = {STUDENT_PREFIX + key: value for key, value in to_published_layout(student, backbone).items()}
    expected = published | {key: value for key, value in source.items() if not key.startswith(TRUNK_PREFIX)}
    assert list(merged) == list(expected)
    for key, value in expected.items():
        assert merged[key].dtype == value.dtype
        assert torch.equal(merged[key], value), key
    assert (account.student_tensors, account.removed_tensors) == (len(published), 56)
    assert "published loader" not in " ".join(account.lines())
    # A merged file is a student file, too.
    state = load_student_state(tmp_path / "out.pt", backbone)
    assert all(torch.equal(state[key], student[key]) for key in student)


def test_metadata_next_to_the_file_names_the_sources(
    tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path
) -> None:
    account = merge(student_checkpoint(), tiny_sam3_path, tmp_path / "out.pt")
    metadata = json.loads((tmp_path / "out.pt.json").read_text())
    assert metadata["sha256"] == account.sha256
    assert metadata["bytes"] == (tmp_path / "out.pt").stat().st_size
    assert metadata["architecture"]["backbone"] == "efficientvit_b0"
    assert metadata["preprocessing"]["image_size"] == 224
    assert len(metadata["student"]["sha256"]) == len(metadata["sam3"]["sha256"]) == 64
    card = (tmp_path / "out.pt.md").read_text()
    assert "SAM licence" in card
    assert "efficientvit_b0" in card


def test_an_own_backbone_keeps_its_names_and_says_so(
    tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path
) -> None:
    path = student_checkpoint("timm/resnet10t")
    account = merge(path, tiny_sam3_path, tmp_path / "out.pt")
    merged = read_tensors(tmp_path / "out.pt", STUDENT_PREFIX)
    assert merged.keys() == {STUDENT_PREFIX + key for key in torch.load(path, weights_only=True)["model"]}
    assert "published loader cannot read" in " ".join(account.notes)


def test_a_new_named_student_is_one_entry(
    tiny_sam3_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One without a published layout, and of another stride than the published ones."""
    monkeypatch.setitem(STUDENTS, "es_toy", NamedStudent("toy_vit", "vit_tiny_patch16_224"))
    assert select_students(["es_toy", "all"])[-1] == "es_tv_l"
    with pytest.raises(UserError, match=r"MODEL\.BACKBONE 'no_such'.* toy_vit, "):
        timm_name("no_such")
    check_student_grid(StudentArchitecture(backbone_of("es_toy"), 64, 16, 224))
    content = training_checkpoint("toy_vit")
    torch.save(content, tmp_path / "ckpt_epoch_0.pth")
    merge(tmp_path / "ckpt_epoch_0.pth", tiny_sam3_path, tmp_path / "out.pt")
    state = load_student_state(tmp_path / "out.pt", "toy_vit")
    assert state.keys() == content["model"].keys()
    assert all(torch.equal(state[key], value) for key, value in content["model"].items())


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("format", ["native", "hf"])
def test_standardised_targets_and_the_average_of_the_weights_are_worked_in(
    format: Literal["native", "hf"], head: str, tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path
) -> None:
    content = torch.load(student_checkpoint("efficientvit_b0", head), weights_only=True)
    standardisation = Standardisation(torch.linspace(-3, 4, 64), torch.linspace(0.1, 5, 64))
    content["normalisation"] = standardisation.state_dict()
    content["ema"] = {
        key: value * 1.01 if value.is_floating_point() else value for key, value in content["model"].items()
    }
    torch.save(content, tmp_path / "ckpt_epoch_0.pth")
    merge(tmp_path / "ckpt_epoch_0.pth", tiny_sam3_path, tmp_path / "out", format=format)
    trained = Student(StudentArchitecture(**content["architecture"])).eval()
    trained.load_state_dict(content["ema"])
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = standardisation.restore(trained(pixels)).flatten(2).transpose(1, 2)
        found = build_models(read_contents(tmp_path / "out")).encoder(pixels).last_hidden_state
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize(("head", "keys"), [("fpn", "head."), ("fpn4", "head.fpn.")])
def test_another_head_is_known_again_by_its_tensors(
    head: str, keys: str, tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path
) -> None:
    path = student_checkpoint("repvit_m0_9", head)
    account = merge(path, tiny_sam3_path, tmp_path / "out.pt")
    assert "published loader cannot read" in " ".join(account.notes)
    merged = read_tensors(tmp_path / "out.pt", STUDENT_PREFIX)
    assert any(key.startswith(f"{STUDENT_PREFIX}backbone.model.features.0.") for key in merged)
    assert {f"{STUDENT_PREFIX}{keys}lateral.2.conv.weight", f"{STUDENT_PREFIX}{keys}output.bias"} <= merged.keys()
    # The metadata next to the file says it; the tensors say it too.
    (tmp_path / "out.pt.json").unlink()
    backbone = read_contents(tmp_path / "out.pt").config.detector_config.vision_config.backbone_config
    assert (backbone.backbone, backbone.head) == ("repvit_m0_9", head)
    torch.save(torch.load(path, weights_only=True)["model"], tmp_path / "bare.pth")
    assert merge(tmp_path / "bare.pth", tiny_sam3_path, tmp_path / "again.pt").sha256 == account.sha256


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_another_precision_halves_every_weight(
    dtype: torch.dtype, tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path
) -> None:
    merge(student_checkpoint(), tiny_sam3_path, tmp_path / "out.pt", dtype=dtype)
    kinds = {value.dtype for value in read_tensors(tmp_path / "out.pt").values()}
    assert kinds == {dtype, torch.int64}  # BatchNorm's counters stay


def test_parts_can_be_left_out(tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path) -> None:
    account = merge(student_checkpoint(), tiny_sam3_path, tmp_path / "out.pt", keep=["image"])
    merged = read_tensors(tmp_path / "out.pt")
    assert [key for key in merged if key.startswith(TEXT_PREFIX)] == [VISUAL_PROMPT_KEY]
    assert merged[VISUAL_PROMPT_KEY].shape == (3, 16)
    assert not any(key.startswith("tracker.") or "sam2_convs" in key for key in merged)
    assert set(account.left_out) == {"text", "tracker"}
    merge(student_checkpoint(), tiny_sam3_path, tmp_path / "out.pt", keep=["tracker"])
    kept = [key for key in read_tensors(tmp_path / "out.pt") if not key.startswith(STUDENT_PREFIX)]
    assert kept
    assert all(key.startswith("tracker.") or "sam2_convs" in key for key in kept)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (["audio"], "'audio' is not a"),
        (["text"], "needs image or tracker"),
        (["text", "tracker"], "needs image too"),
    ],
)
def test_parts_that_answer_nothing_are_refused(
    keep: list[str], message: str, tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        merge(student_checkpoint(), tiny_sam3_path, tmp_path / "out.pt", keep=keep)


def test_a_dry_run_accounts_and_writes_nothing(tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path) -> None:
    account = merge(student_checkpoint(), tiny_sam3_path, tmp_path / "out", format="hf", dry_run=True)
    assert no_trace(tmp_path)
    source = tiny_sam3()
    assert account.removed_tensors + sum(count for count, _ in account.kept.values()) == len(source)
    assert sum(account.changes.values()) + len(account.ignored) == sum(count for count, _ in account.kept.values())
    text = "\n".join(account.lines())
    for line in ("dry run", "point prompts of the detector", "split in query, key and value"):
        assert line in text


def test_other_prefixes_are_honoured(tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path) -> None:
    account = merge(student_checkpoint(), tiny_sam3_path, tmp_path / "out.pt", target_prefix="my.student.")
    merged = read_tensors(tmp_path / "out.pt")
    assert "my.student.head.3.bias" in merged
    assert not any(key.startswith(TRUNK_PREFIX) for key in merged)
    assert "only code that knows them" in " ".join(account.notes)
    with pytest.raises(UserError, match="'nothing.' matches no tensor"):
        merge(student_checkpoint(), tiny_sam3_path, tmp_path / "x.pt", replace_prefix="nothing.")
    with pytest.raises(UserError, match="would be mixed with the student"):
        merge(student_checkpoint(), tiny_sam3_path, tmp_path / "x.pt", target_prefix="tracker.")
    assert not (tmp_path / "x.pt").exists()


def broken_sam3(name: str) -> dict[str, torch.Tensor]:
    tensors = tiny_sam3()
    neck = "detector.backbone.vision_backbone.convs.0.conv_1x1.weight"
    match name:
        case "missing":
            del tensors[neck]
        case "missing size":
            del tensors["detector.geometry_encoder.boxes_pool_project.weight"]
        case "shape":
            tensors[neck] = tensors[neck][:-1]
        case "unknown":
            tensors["detector.extra.weight"] = torch.ones(1)
        case "nan":
            tensors[neck][0] = float("nan")
        case "video memory":
            del tensors["tracker.maskmem_backbone.fuser.layers.1.gamma"]
    return tensors


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", r"1 missing, such as .*fpn_layers\.0\.proj1\.weight"),
        ("missing size", r"lacks .*boxes_pool_project\.weight"),
        ("shape", r"another shape.*\(15, 16, 1, 1\) instead of \(16, 16, 1, 1\)"),
        ("unknown", r"detector\.extra\.weight is not a tensor of SAM3"),
        ("nan", r"conv_1x1\.weight.*not finite"),
        ("video memory", r"1 missing.*memory_fuser\.layers\.1\.scale"),
    ],
)
def test_a_broken_sam3_is_refused(name: str, message: str, student_checkpoint: Make, tmp_path: Path) -> None:
    torch.save(broken_sam3(name), tmp_path / "sam3.pt")
    write_own_text(tmp_path / "out.pt", "what was there", native_file.MERGED_MODEL)
    with pytest.raises(UserError, match=message):
        merge(student_checkpoint(), tmp_path / "sam3.pt", tmp_path / "out.pt")
    assert (tmp_path / "out.pt").read_text() == "what was there"
    assert no_trace(tmp_path, "sam3.pt", "out.pt")


def change_student(content: dict[str, Any], name: str) -> dict[str, Any]:
    model, architecture = dict(content["model"]), dict(content["architecture"])
    match name:
        case "missing":
            del model["head.3.bias"]
        case "shape":
            model["head.3.bias"] = torch.ones(7)
        case "nan":
            model["head.3.bias"] = torch.full_like(model["head.3.bias"], float("inf"))
        case "other":
            architecture["backbone"] = "repvit_m0_9"
        case "grid":
            architecture["embed_size"] = 8
        case "unknown field":
            architecture["colour"] = "red"
        case "preprocessing":
            return content | {"preprocessing": {"resize": "fold"}}
    return content | {"model": model, "architecture": architecture}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", r"1 missing, such as head\.3\.bias"),
        ("shape", r"head\.3\.bias \(7,\) instead of \(64,\)"),
        ("nan", r"head\.3\.bias.*not finite"),
        ("other", "does not fit repvit_m0_9"),
        ("grid", r"64 channels on 8x8 cells.*takes 64 on 16x16 at 224"),
        ("unknown field", "colour: Unexpected keyword argument"),
        ("preprocessing", "preprocessing in .* is not understood"),
    ],
)
def test_a_broken_student_is_refused(
    name: str, message: str, tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path
) -> None:
    content = torch.load(student_checkpoint(), weights_only=True)
    torch.save(change_student(content, name), tmp_path / "student.pth")
    with pytest.raises(UserError, match=message):
        merge(tmp_path / "student.pth", tiny_sam3_path, tmp_path / "out.pt")
    assert no_trace(tmp_path, "student.pth")


def test_truncated_and_hostile_files_are_refused(
    tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path
) -> None:
    content = tiny_sam3_path.read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="broken or cut short"):
        merge(student_checkpoint(), tmp_path / "cut.pt", tmp_path / "out.pt")

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'proof'}",)

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="could run code"):
        merge(tmp_path / "evil.pth", tiny_sam3_path, tmp_path / "out.pt")
    assert no_trace(tmp_path, "cut.pt", "evil.pth")


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_the_output_is_never_an_input(
    link: Callable[[Path, Path], None] | None, tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path
) -> None:
    before = tiny_sam3_path.read_bytes()
    output = tiny_sam3_path
    if link is not None:
        output = tmp_path / "link.pt"
        link(tiny_sam3_path, output)
    with pytest.raises(UserError, match="is an input of the merge"):
        merge(student_checkpoint(), tiny_sam3_path, output)
    assert tiny_sam3_path.read_bytes() == before


def test_a_full_disk_leaves_the_old_output(
    tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = _ReleasingFile.write

    def fails_late(self: Any, data: bytes) -> int:
        if self._file.tell() > 1 << 20:
            self.error = OSError(28, "No space left on device")
            raise self.error
        return written(self, data)

    monkeypatch.setattr(_ReleasingFile, "write", fails_late)
    write_own_text(tmp_path / "out.pt", "old", native_file.MERGED_MODEL)
    with pytest.raises(UserError, match="No space left on device"):
        merge(student_checkpoint(), tiny_sam3_path, tmp_path / "out.pt")
    assert (tmp_path / "out.pt").read_text() == "old"
    assert no_trace(tmp_path, "out.pt")


def test_a_disk_that_changes_what_is_written_is_noticed(
    tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def corrupts(path: Path, tensors: dict[str, torch.Tensor], final: Path) -> str:
        torch.save(tensors | {"tracker.no_mem_embed": tensors["tracker.no_mem_embed"] + 1}, path)
        return ""

    monkeypatch.setattr(native_file, "save_tensors", corrupts)
    with pytest.raises(UserError, match=r"read back with another tracker\.no_mem_embed"):
        merge(student_checkpoint(), tiny_sam3_path, tmp_path / "out.pt")
    assert no_trace(tmp_path)


def test_a_wrongly_named_student_is_noticed_by_running_it(
    tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swaps(state: dict[str, torch.Tensor], backbone: str) -> dict[str, torch.Tensor]:
        published = to_published_layout(state, backbone)
        first, second = "head.1.running_mean", "head.1.bias"
        return published | {first: published[second], second: published[first]}

    monkeypatch.setattr(native_file, "to_published_layout", swaps)
    with pytest.raises(UserError, match="embedding differs from the source's"):
        merge(student_checkpoint(), tiny_sam3_path, tmp_path / "out.pt")
    assert no_trace(tmp_path)


def test_values_too_large_for_float16_are_refused(
    tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path
) -> None:
    tensors = tiny_sam3()
    tensors["tracker.no_mem_embed"][0, 0, 0] = 1e6
    torch.save(tensors, tmp_path / "sam3.pt")
    with pytest.raises(UserError, match=r"too large for torch\.float16"):
        merge(student_checkpoint(), tmp_path / "sam3.pt", tmp_path / "out.pt", dtype=torch.float16)


def test_a_merged_model_is_no_sam3(tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path) -> None:
    merge(student_checkpoint(), tiny_sam3_path, tmp_path / "once.pt")
    with pytest.raises(UserError, match="is an EfficientSAM3 already"):
        merge(student_checkpoint(), tmp_path / "once.pt", tmp_path / "twice.pt")


def test_other_pixels_than_sam3s_are_noted(tiny_sam3_path: Path, student_checkpoint: Make, tmp_path: Path) -> None:
    content = torch.load(student_checkpoint(), weights_only=True)
    content["preprocessing"] |= {"resize": "pad"}
    torch.save(content, tmp_path / "student.pth")
    account = merge(tmp_path / "student.pth", tiny_sam3_path, tmp_path / "out.pt", dry_run=True)
    assert "trained on pad images" in " ".join(account.notes)


def test_the_former_import_path_works() -> None:
    from efficientsam3.deploy import merge as former

    assert former.merge is merge
