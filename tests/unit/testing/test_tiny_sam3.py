import json
import math
from pathlib import Path

import pytest
import torch

from efficientsam3.checkpoints.sam3_tensors import sam3_tensors
from efficientsam3.testing.tiny_sam3 import TinySam3, tiny_sam3, write_tiny_sam3

TRUNK = "detector.backbone.vision_backbone.trunk."
REFERENCE = Path(__file__).parents[3].parent / "shared" / "sam3_reference" / "sam3_pt_tensors.json"


def pattern(key: str) -> str:
    return ".".join("N" if part.isdigit() else part for part in key.split("."))


def test_every_key_pattern_of_the_real_file_is_there() -> None:
    assert {pattern(key) for key in tiny_sam3()} == {pattern(key) for key in sam3_tensors()}


def test_dtypes_are_those_of_the_real_file() -> None:
    facts = sam3_tensors()
    assert all(str(tensor.dtype) == f"torch.{facts[key].dtype}" for key, tensor in tiny_sam3().items())


@pytest.mark.parametrize("tiny", [TinySam3(), TinySam3(grid=24, window=8, pretraining_grid=12, head_size=16)])
def test_architecture_can_be_read_off_the_tensors(tiny: TinySam3) -> None:
    tensors = tiny_sam3(tiny=tiny)
    rows = [tensors[f"{TRUNK}blocks.{block}.attn.freqs_cis"].shape[0] for block in range(4)]
    assert max(rows) == tiny.grid**2
    assert min(rows) == tiny.window**2
    assert tuple(block for block in range(4) if rows[block] == max(rows)) == tiny.global_blocks
    assert 2 * tensors[f"{TRUNK}blocks.0.attn.freqs_cis"].shape[1] == tiny.head_size
    assert tensors[f"{TRUNK}pos_embed"].shape == (1, 1 + tiny.pretraining_grid**2, 64)
    assert tensors[f"{TRUNK}patch_embed.proj.weight"].shape == (64, 3, 14, 14)
    assert tensors[f"{TRUNK}blocks.3.attn.qkv.weight"].shape == (3 * 64, 64)


def test_size_mixups_would_show() -> None:
    tiny = TinySam3()
    assert len({tiny.grid, tiny.window, tiny.pretraining_grid, tiny.head_size, 64}) == 5


def test_written_file_is_small_flat_and_the_same_for_the_same_seed(tmp_path: Path) -> None:
    path = tmp_path / "sam3.pt"
    write_tiny_sam3(path, seed=3)
    assert path.stat().st_size < 16e6
    read = torch.load(path, weights_only=True, mmap=True)
    assert list(read) == list(tiny_sam3(seed=3))
    assert all(torch.equal(read[key], tensor) for key, tensor in tiny_sam3(seed=3).items())
    key = f"{TRUNK}blocks.0.mlp.fc1.weight"
    assert not torch.equal(read[key], tiny_sam3(seed=4)[key])


def test_shipped_table_is_the_reference() -> None:
    if not REFERENCE.is_file():
        pytest.skip("shared/sam3_reference is not beside the checkout")
    reference = json.loads(REFERENCE.read_text())
    table = sam3_tensors()
    assert list(table) == list(reference)
    assert all([list(fact.shape), fact.dtype] == reference[key] for key, fact in table.items())


def test_shipped_table_has_the_published_size() -> None:
    facts = [fact for fact in sam3_tensors().values() if fact.dtype == "float32"]
    assert round(sum(math.prod(fact.shape) for fact in facts) / 1e6, 2) == 860.06
