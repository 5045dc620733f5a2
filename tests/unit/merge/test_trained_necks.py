"""Necks that were trained with a student, in the place of SAM3's: accounted for, verified, and what is computed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from efficientsam3.checkpoints.necks import NECK_PREFIXES, NeckName, under
from efficientsam3.checkpoints.reading import read_tensors
from efficientsam3.checkpoints.sam3_convert import rename
from efficientsam3.checkpoints.sam3_keys import HF_TRUNK_PREFIX, NATIVE_NECKS
from efficientsam3.merge import native_file
from efficientsam3.merge.fuse import fuse
from efficientsam3.merge.run import merge
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.build import build_models
from efficientsam3.sam3.contents import merged_necks, metadata_path, read_contents
from efficientsam3.testing.tiny_sam3 import write_tiny_sam3

Trained = Callable[..., Path]
BOTH: tuple[NeckName, ...] = ("detector", "tracker")


def trained_necks(path: Path) -> Any:
    return torch.load(path, weights_only=True)["necks"]


@pytest.mark.parametrize("format", ["native", "hf"])
def test_the_merged_model_computes_with_the_trained_necks(
    format: Literal["native", "hf"], tiny_sam3_path: Path, with_trained_necks: Trained, tmp_path: Path
) -> None:
    student = with_trained_necks()
    account = merge(student, tiny_sam3_path, tmp_path / "out", format=format)
    contents, sam3 = read_contents(tmp_path / "out"), read_contents(tiny_sam3_path)
    trained = trained_necks(student)["model"]
    assert len(trained) == 2 * 2 * (4 + 3 + 2)  # weight and bias, of three levels
    for key, value in sam3.tensors.items():
        if not key.startswith(HF_TRUNK_PREFIX):
            assert torch.equal(contents.tensors[key], trained.get(key, value)), key
    sizes = (18, sum(value.numel() for value in under(trained, "tracker").values()))
    assert account.replaced == {"detector": sizes, "tracker": sizes}
    lines = "\n".join(account.lines())
    for name in BOTH:
        assert f"the {name}'s neck, by the one that was trained with the student" in lines
    every = account.removed_tensors + 2 * 18 + sum(count for count, _ in account.kept.values())
    assert sam3.native is not None
    assert every == len(sam3.native)
    models, own = build_models(contents), build_models(sam3)
    embedding = torch.randn(1, 64, 16, 16, generator=torch.Generator().manual_seed(1))
    for name, model in (("detector", models.detector), ("tracker", models.tracker)):
        neck = getattr(own, name).vision_encoder.neck
        neck.load_state_dict(neck.state_dict() | under(trained, name))  # type: ignore[arg-type]
        for found, expected in zip(model.vision_encoder.neck(embedding)[0], neck(embedding)[0], strict=True):
            assert torch.equal(found, expected)
    card = (tmp_path / "out" / "README.md" if format == "hf" else tmp_path / "out.md").read_text()
    assert "| necks trained with the student | detector, tracker |" in card


def test_the_tensors_are_those_of_a_merge_without(
    tiny_sam3_path: Path, merged: Path, with_trained_necks: Trained, tmp_path: Path
) -> None:
    """The published loader reads it, too."""
    merge(with_trained_necks(), tiny_sam3_path, tmp_path / "out.pt", dtype="float16")
    found, expected = read_tensors(tmp_path / "out.pt"), read_tensors(merged)
    assert list(found) == list(expected)
    changed = {rename(key) for key, value in expected.items() if not torch.equal(found[key], value.half())}
    assert changed == trained_necks(with_trained_necks())["model"].keys()
    assert "trained_necks" not in json.loads(metadata_path(merged).read_text())


def test_a_neck_of_a_part_that_is_left_out_is_left_out(
    tiny_sam3_path: Path, with_trained_necks: Trained, tmp_path: Path
) -> None:
    account = merge(with_trained_necks(), tiny_sam3_path, tmp_path / "out.pt", keep="tracker")
    assert account.replaced.keys() == {"tracker"}
    assert json.loads((tmp_path / "out.pt.json").read_text())["trained_necks"].keys() == {"tracker"}
    assert not any(key.startswith(NATIVE_NECKS[0]) for key in read_tensors(tmp_path / "out.pt"))


def test_one_neck_leaves_the_other_as_it_is(tiny_sam3_path: Path, with_trained_necks: Trained, tmp_path: Path) -> None:
    account = merge(with_trained_necks("tracker"), tiny_sam3_path, tmp_path / "out.pt", dry_run=True)
    assert account.replaced.keys() == {"tracker"}


def test_they_go_with_the_student_out_of_a_merged_model(
    tiny_sam3_path: Path, with_trained_necks: Trained, merged_with_necks: Path, tmp_path: Path
) -> None:
    fuse(merged_with_necks, tmp_path / "fused.pt")
    merge(merged_with_necks, tiny_sam3_path, tmp_path / "hf", format="hf")
    expected = trained_necks(with_trained_necks())
    for source in (merged_with_necks, tmp_path / "fused.pt", tmp_path / "hf"):
        account = merge(source, tiny_sam3_path, tmp_path / "last.pt", dry_run=True)
        assert account.replaced.keys() == {"detector", "tracker"}
        found = merged_necks(source)
        assert found is not None
        assert found.origins == expected["origins"]
        assert found.state.keys() == expected["model"].keys()
        assert all(torch.equal(found.state[key], value) for key, value in expected["model"].items())


def test_another_sam3_than_that_of_the_training_is_refused(
    with_trained_necks: Trained, merged_with_necks: Path, tmp_path: Path
) -> None:
    write_tiny_sam3(tmp_path / "other.pt", seed=5)
    for student in (with_trained_necks(), merged_with_necks):
        with pytest.raises(UserError, match="with the detector's neck of another SAM3 than .*other"):
            merge(student, tmp_path / "other.pt", tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_a_neck_that_is_not_whole_is_refused(tiny_sam3_path: Path, with_trained_necks: Trained, tmp_path: Path) -> None:
    content = torch.load(with_trained_necks(), weights_only=True)
    key = NECK_PREFIXES["tracker"] + "fpn_layers.0.proj1.weight"
    for broken, message in ((None, "1 missing"), (torch.zeros(3), "of another shape"), (torch.tensor(1), "")):
        necks = dict(content["necks"]["model"])
        necks.pop(key)
        necks |= {} if broken is None else {key: broken}
        torch.save(content | {"necks": content["necks"] | {"model": necks}}, tmp_path / "ckpt.pth")
        with pytest.raises(UserError, match=f"The tracker's neck in .* is not whole .*{message}"):
            merge(tmp_path / "ckpt.pth", tiny_sam3_path, tmp_path / "out.pt")


def test_a_neck_that_computes_otherwise_is_noticed(
    tiny_sam3_path: Path, with_trained_necks: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it would with the two necks mixed up, or left as they were."""
    replacements = native_file.neck_replacements

    def mixed(*given: Any) -> Any:
        found = replacements(*given)
        detector, tracker = found.values()
        return {"detector": dict(zip(detector, tracker.values(), strict=True))}

    monkeypatch.setattr(native_file, "neck_replacements", mixed)
    with pytest.raises(UserError, match="The merged detector's neck differs from the student's by"):
        merge(with_trained_necks(), tiny_sam3_path, tmp_path / "out.pt")
    monkeypatch.setattr(native_file, "neck_replacements", lambda *_: {})
    with pytest.raises(UserError, match="The merged detector's neck differs from the student's by"):
        merge(with_trained_necks(), tiny_sam3_path, tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()
