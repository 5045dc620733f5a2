"""Reading tensors: every layout that exists, and files that should not be trusted."""

import argparse
import json
import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from efficientsam3.checkpoints.reading import read_tensors
from efficientsam3.runtime.errors import UserError

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.count": torch.tensor(3), "c": torch.ones(2).bool()}


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(torch.equal(found[key], TENSORS[key]) for key in TENSORS)


def write_shards(folder: Path) -> Path:
    save_file({"a.weight": TENSORS["a.weight"]}, folder / "one.safetensors")
    save_file({key: TENSORS[key] for key in ("b.count", "c")}, folder / "two.safetensors")
    shards = {"a.weight": "one.safetensors", "b.count": "two.safetensors", "c": "two.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    return folder


def test_a_flat_file_and_one_under_model_read_alike(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "flat.pt")
    torch.save({"model": TENSORS, "epoch": 3}, tmp_path / "nested.pt")
    assert same(read_tensors(tmp_path / "flat.pt"))
    assert same(read_tensors(tmp_path / "nested.pt"))


def test_an_old_style_file_that_cannot_be_mapped_is_read(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(read_tensors(tmp_path / "old.pth"))


def test_safetensors_and_hugging_face_directories_are_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert same(read_tensors(tmp_path / "model.safetensors"))
    assert same(read_tensors(tmp_path))
    (tmp_path / "sharded").mkdir()
    assert same(read_tensors(write_shards(tmp_path / "sharded")))


def test_a_prefix_selects_and_stays(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "flat.pt")
    assert list(read_tensors(tmp_path / "flat.pt", "a.")) == ["a.weight"]
    assert list(read_tensors(write_shards(tmp_path), "b.")) == ["b.count"]


def test_reading_maps_the_file_rather_than_copying_it(tmp_path: Path) -> None:
    torch.save({"big": torch.zeros(1 << 20)}, tmp_path / "big.pt")
    read = read_tensors(tmp_path / "big.pt")
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc here")
    assert str(tmp_path / "big.pt") in maps.read_text()
    del read


class Runs:
    """Pickles as a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, zipped: bool) -> None:
    proof = tmp_path / "proof"
    content = {"model": TENSORS, "evil": Runs(f"touch {proof}")}
    torch.save(content, tmp_path / "evil.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"system.*could run code.*state_dict"):
        read_tensors(tmp_path / "evil.pt")
    assert not proof.exists()


def make_config_class() -> type:
    """A class like yacs' CfgNode, importable while it is pickled."""
    module = types.ModuleType("yacs.config")
    cls = type("CfgNode", (dict,), {"__module__": "yacs.config", "__qualname__": "CfgNode"})
    module.CfgNode = cls  # type: ignore[attr-defined]
    sys.modules |= {"yacs": types.ModuleType("yacs"), "yacs.config": module}
    return cls


def test_a_published_training_checkpoint_with_its_config_object_is_admitted(tmp_path: Path) -> None:
    cls = make_config_class()
    try:
        config = cls(MODEL=cls(NAME="x"))
        config.__dict__["immutable"] = True
        content = {"model": TENSORS, "config": config, "args": argparse.Namespace(lr=1.0), "epoch": 3}
        torch.save(content, tmp_path / "ckpt.pth")
    finally:
        del sys.modules["yacs"], sys.modules["yacs.config"]
    assert same(read_tensors(tmp_path / "ckpt.pth"))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_file_cut_short_is_refused(tmp_path: Path, zipped: bool, share: float) -> None:
    path = tmp_path / "cut.pt"
    torch.save({"big": torch.randn(5000)}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"cut\.pt"):
        read_tensors(path)


def test_a_cut_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(content[:-5])
    with pytest.raises(UserError, match="broken or cut short"):
        read_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "list"),
        ({}, "empty dict"),
        ({"a": 1.0}, "float under 'a'"),
        ({"model": {"a": "text"}}, "str under 'a'"),
        ({3: torch.ones(1)}, "under 3"),
    ],
)
def test_what_is_no_dict_of_tensors_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=message):
        read_tensors(tmp_path / "x.pt")


def test_missing_places_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "no.pt", tmp_path / "no.safetensors", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            read_tensors(path)


def test_an_index_must_not_point_elsewhere_or_lie(tmp_path: Path) -> None:
    write_shards(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": "../one.safetensors"}}))
    with pytest.raises(UserError, match="outside its folder"):
        read_tensors(tmp_path)
    index.write_text(json.dumps({"weight_map": {"absent": "one.safetensors"}}))
    with pytest.raises(UserError, match="absent"):
        read_tensors(tmp_path)
    index.write_text("{}")
    with pytest.raises(UserError, match="not a safetensors index"):
        read_tensors(tmp_path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.one_of(st.binary(max_size=300), st.builds(pickle.dumps, st.recursive(st.integers(), st.lists))))
def test_arbitrary_bytes_are_never_more_than_a_user_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "any.pt"
    for magic in (b"", b"PK\x03\x04"):
        path.write_bytes(magic + data)
        with pytest.raises(UserError):
            read_tensors(path)
