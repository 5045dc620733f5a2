"""The trunk and the whole of SAM3, read off the tensors of a small one."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import Sam3VideoModel

from efficientsam3.checkpoints.fitting import differences, layouts
from efficientsam3.checkpoints.sam3 import expected_layouts, inspect_trunk, load_trunk, trunk_config
from efficientsam3.checkpoints.sam3_config import video_config
from efficientsam3.checkpoints.sam3_convert import Change, convert, plan_conversion
from efficientsam3.checkpoints.sam3_keys import STUDENT_PREFIX
from efficientsam3.checkpoints.sam3_tensors import TRUNK_PREFIX, sam3_tensors
from efficientsam3.runtime.errors import UserError
from efficientsam3.testing.tiny_sam3 import TinySam3, tiny_sam3, write_tiny_sam3


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sam3") / "sam3.pt"
    write_tiny_sam3(path)
    return path


def full_size_meta() -> dict[str, torch.Tensor]:
    """sam3.pt on the meta device: names and shapes without values."""
    return {
        key: torch.empty(fact.shape, dtype=getattr(torch, fact.dtype), device="meta")
        for key, fact in sam3_tensors().items()
    }


def test_the_plan_is_total_for_the_real_file() -> None:
    tensors = full_size_meta()
    plan = plan_conversion(tensors)
    consumed = [key for step in plan.steps for key in step.sources]
    assert sorted([*consumed, *plan.ignored]) == sorted(tensors)
    assert len(set(plan.targets)) == len(plan.targets)
    assert {reason.split(",")[0] for reason in plan.ignored.values()} == {
        "rotary tables",
        "point prompts of the detector",
    }
    assert {step.change for step in plan.steps} == set(Change)
    config = video_config(tensors, trunk_config(tensors))
    assert differences(layouts(convert(tensors)), expected_layouts(Sam3VideoModel, config, Path("sam3.pt"))) == ""


def test_the_real_files_config_is_transformers_default() -> None:
    tensors = full_size_meta()
    found = trunk_config(tensors)
    default = type(found)()
    assert found.to_dict() == default.to_dict()


def test_architecture_of_the_small_trunk(tiny_path: Path) -> None:
    config = inspect_trunk(tiny_path)
    assert (config.image_size, config.patch_size, config.hidden_size, config.num_hidden_layers) == (224, 14, 64, 4)
    assert (config.window_size, config.global_attn_indexes, config.num_attention_heads) == (4, [1, 3], 2)
    assert (config.pretrain_image_size, config.intermediate_size) == (112, 296)


def test_another_grid_is_read_too(tmp_path: Path) -> None:
    write_tiny_sam3(tmp_path / "x.pt", tiny=TinySam3(grid=12, window=3, global_blocks=(0,)))
    config = inspect_trunk(tmp_path / "x.pt")
    assert (config.image_size, config.window_size, config.global_attn_indexes) == (168, 3, [0])


def test_the_trunk_is_frozen_float32_and_in_eval_mode(tiny_path: Path) -> None:
    trunk = load_trunk(tiny_path)
    assert not trunk.training
    assert all(not parameter.requires_grad and parameter.dtype == torch.float32 for parameter in trunk.parameters())
    embedding = trunk(torch.randn(1, 3, 224, 224)).last_hidden_state
    assert embedding.shape == (1, 256, 64)
    assert torch.isfinite(embedding).all()


def test_values_land_where_they_belong(tiny_path: Path) -> None:
    source = tiny_sam3()
    trunk = load_trunk(tiny_path)
    fused = source[TRUNK_PREFIX + "blocks.2.attn.qkv.weight"]
    attention = trunk.layers[2].attention
    assert torch.equal(torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]), fused)
    assert torch.equal(trunk.embeddings.position_embeddings, source[TRUNK_PREFIX + "pos_embed"][:, 1:])
    assert torch.equal(trunk.layer_norm.weight, source[TRUNK_PREFIX + "ln_pre.weight"])


def test_values_of_the_transformed_tensors() -> None:
    source = tiny_sam3()
    converted = convert(source)
    text = "detector.backbone.language_backbone.encoder.text_projection"
    assert torch.equal(converted["detector_model.text_encoder.text_projection.weight"], source[text].T)
    points = [source[f"tracker.sam_prompt_encoder.point_embeddings.{index}.weight"] for index in range(4)]
    assert torch.equal(converted["tracker_model.prompt_encoder.point_embed.weight"], torch.cat(points))
    matrix = source["tracker.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    for place in ("shared_image_embedding", "prompt_encoder.shared_embedding"):
        assert torch.equal(converted[f"tracker_model.{place}.positional_embedding"], matrix)


def write_hf(folder: Path, prefix: str, config: dict[str, object]) -> Path:
    tensors = {
        prefix + key.removeprefix("detector_model.vision_encoder.backbone."): value.contiguous().clone()
        for key, value in convert({k: v for k, v in tiny_sam3().items() if k.startswith(TRUNK_PREFIX)}).items()
    }
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_hugging_face_directory_gives_the_same_trunk(tiny_path: Path, tmp_path: Path) -> None:
    backbone = inspect_trunk(tiny_path).to_dict()
    pixels = torch.randn(1, 3, 224, 224)
    expected = load_trunk(tiny_path)(pixels).last_hidden_state
    nested = {"vision_config": {"backbone_config": backbone}}
    for name, prefix, config in (
        ("video", "detector_model.vision_encoder.backbone.", {"detector_config": nested}),
        ("image", "vision_encoder.backbone.", nested),
        ("trunk", "", backbone),
    ):
        folder = write_hf(tmp_path / name, prefix, config)
        assert inspect_trunk(folder).to_dict() == inspect_trunk(tiny_path).to_dict()
        assert torch.equal(load_trunk(folder)(pixels).last_hidden_state, expected)


def test_wrong_checkpoints_are_refused_with_one_sentence(tmp_path: Path) -> None:
    source = tiny_sam3()
    cases = {
        "no SAM3 image trunk": {"x": torch.ones(1)},
        "missing": {key: value for key, value in source.items() if key != TRUNK_PREFIX + "ln_pre.bias"},
        "another shape": source | {TRUNK_PREFIX + "ln_pre.bias": torch.ones(3)},
        "not a square grid": source | {TRUNK_PREFIX + "pos_embed": torch.ones(1, 8, 64)},
        "not a tensor of SAM3": source | {"detector.nonsense.weight": torch.ones(1)},
        "unexpected": source | {TRUNK_PREFIX + "extra": torch.ones(1)},
        "an EfficientSAM3": source | {STUDENT_PREFIX + "head.0.weight": torch.ones(1)},
    }
    for message, tensors in cases.items():
        torch.save(tensors, tmp_path / "x.pt")
        if message == "not a tensor of SAM3":
            with pytest.raises(UserError, match=message):
                convert(tensors)
        else:
            with pytest.raises(UserError, match=message):
                load_trunk(tmp_path / "x.pt")


def test_a_missing_layer_does_not_pass_as_a_shallower_model(tmp_path: Path) -> None:
    source = {k: v for k, v in tiny_sam3().items() if not k.startswith(TRUNK_PREFIX + "blocks.1.")}
    torch.save(source, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"no SAM3 image trunk"):
        inspect_trunk(tmp_path / "x.pt")


def test_a_directory_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "x", "", {"model_type": "vit"})
    with pytest.raises(UserError, match="describes no SAM3 image trunk"):
        inspect_trunk(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        load_trunk(folder)
