"""The student as a Hugging Face backbone."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from efficientsam3.models.hf_backbone import EfficientSam3StudentConfig, EfficientSam3StudentModel
from tiny import NAMED_BACKBONES

SIZES = {"hidden_size": 16, "image_size": 224, "patch_size": 14}


@pytest.mark.parametrize("backbone", [*NAMED_BACKBONES, "timm/mobilenetv3_small_050"])
def test_saved_and_reloaded_the_model_is_the_same(backbone: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = EfficientSam3StudentModel(EfficientSam3StudentConfig(backbone=backbone, **SIZES)).eval()
    model.save_pretrained(tmp_path)
    # What from_pretrained does not set is uninitialised memory, often zero by luck: fill it with other values.
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        loaded = AutoModel.from_pretrained(tmp_path).eval()
    finally:
        torch.use_deterministic_algorithms(False)
    assert isinstance(loaded, EfficientSam3StudentModel)
    buffers = dict(loaded.named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    pixels = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(model(pixels).last_hidden_state, loaded(pixels).last_hidden_state)


def test_the_config_describes_the_student() -> None:
    architecture = EfficientSam3StudentConfig(backbone="efficientvit_b0", head="fpn", **SIZES).architecture
    assert (architecture.embed_dim, architecture.embed_size, architecture.image_size) == (16, 16, 224)
    assert architecture.head == "fpn"
    assert EfficientSam3StudentConfig(backbone="efficientvit_b0", **SIZES).architecture.head == "published"


def test_loading_does_not_touch_the_random_state(tmp_path: Path) -> None:
    EfficientSam3StudentModel(EfficientSam3StudentConfig(backbone="tiny_vit_5m", **SIZES)).save_pretrained(tmp_path)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    AutoModel.from_pretrained(tmp_path)
    assert torch.equal(torch.rand(3), expected)


# Each order of imports in a process of its own, forked from one that has imported what they share.
IMPORTED_FIRST = """
import os, sys
import timm, torch

for first in (
    "efficientsam3.models.hf_backbone",
    "efficientsam3; from transformers import AutoConfig",
    "transformers, efficientsam3",
):
    sys.stdout.flush()
    if os.fork() == 0:
        exec(f"import {first}")
        from transformers import AutoConfig, AutoModel
        config = AutoConfig.for_model("efficientsam3_student", backbone="efficientvit_b0", hidden_size=8)
        print(type(AutoModel.from_config(config)).__name__, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.slow
def test_the_backbone_is_known_to_transformers_whatever_is_imported_first() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED_FIRST], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["EfficientSam3StudentModel"] * 3
