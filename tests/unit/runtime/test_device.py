from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from efficientsam3.runtime import device as device_module
from efficientsam3.runtime.device import copy_to, select_device
from efficientsam3.runtime.errors import UserError


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A machine whose PyTorch sees no GPU, and whose /dev is the test's."""
    monkeypatch.setattr(device_module, "_DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    tf32 = torch.backends.cudnn.allow_tf32
    yield monkeypatch
    torch.backends.cudnn.allow_tf32 = tf32


def test_auto_does_not_take_the_cpu_where_a_gpu_is_hidden_by_its_driver(
    machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert select_device("auto").type == "cpu"
    (tmp_path / "nvidiactl").touch()
    assert select_device("auto").type == "cpu"
    (tmp_path / "nvidia0").touch()
    with pytest.raises(UserError, match="NVIDIA GPUs, but PyTorch .* sees none"):
        select_device("auto")
    assert select_device("cpu").type == "cpu"
    machine.setenv("CUDA_VISIBLE_DEVICES", "")
    assert select_device("auto").type == "cpu"


def test_float32_means_float32_on_a_gpu(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(torch.cuda, "is_available", lambda: True)
    machine.setattr(torch.cuda, "device_count", lambda: 2)
    torch.backends.cudnn.allow_tf32 = True
    assert select_device("auto", 1) == torch.device("cuda", 1)
    assert not torch.backends.cudnn.allow_tf32
    with pytest.raises(UserError, match="Process 2 .* has no GPU of its own: PyTorch sees 2"):
        select_device("auto", 2)


@pytest.mark.parametrize("name", ["auto", "mps"])
def test_mps_has_one_process(machine: pytest.MonkeyPatch, name: str) -> None:
    machine.setattr(torch.backends.mps, "is_available", lambda: True)
    assert select_device(name).type == "mps"
    with pytest.raises(UserError, match="GPUS=1"):
        select_device(name, 1)


@pytest.mark.parametrize(("name", "ahead"), [("cuda", True), ("mps", False), ("cpu", False)])
def test_mps_is_waited_for(name: str, ahead: bool) -> None:
    """It would copy from memory that is already used for something else."""
    tensor = Mock()
    copy_to(torch.device(name), tensor)
    tensor.to.assert_called_once_with(torch.device(name), non_blocking=ahead)


def test_nothing_is_copied_to_a_device_in_another_way() -> None:
    source = Path(device_module.__file__).parents[1]
    found = {str(path.relative_to(source)) for path in source.rglob("*.py") if "non_blocking" in path.read_text()}
    assert found == {"runtime/device.py", "embed/pipeline.py"}  # the latter where there is a stream of CUDA's
