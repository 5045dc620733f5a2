"""A process that fails among others."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from efficientsam3.runtime import distributed
from efficientsam3.runtime.distributed import process_group
from efficientsam3.runtime.errors import UserError
from two_processes import fork_two
from unit.runtime.fail_on_two import fail_beside_a_waiting_peer


def test_an_error_is_not_held_back_by_the_group(tmp_path: Path) -> None:
    fork_two(fail_beside_a_waiting_peer, str(tmp_path))
    seconds, _, message = (tmp_path / "0").read_text().partition(" ")
    assert message == "only here"
    assert float(seconds) < 90
    assert "Process 1 of 2 has lost another" in (tmp_path / "1").read_text()


@pytest.mark.parametrize(("device", "named"), [(torch.device("cuda", 1), torch.device("cuda", 1)), ("cpu", None)])
def test_nccl_is_told_its_device(
    monkeypatch: pytest.MonkeyPatch, device: torch.device | str, named: torch.device | None
) -> None:
    """Or it guesses, and warns, in the first barrier."""
    given: dict[str, Any] = {}
    place = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "select_device", lambda *_: torch.device(device))
    monkeypatch.setattr(distributed, "_meet", lambda place: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: given.update(options, backend=backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with process_group("auto"):
        assert given["device_id"] == named
        assert given["backend"] == ("gloo" if named is None else "nccl")


def test_only_a_lost_process_is_said_to_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setattr(distributed, "_meet", lambda place: None)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    with pytest.raises(RuntimeError, match="^shapes$"), process_group("cpu"):
        raise RuntimeError("shapes")
    lost = r"Process 0 of 2 has lost another \(NCCL error: remote process exited\)"
    with pytest.raises(UserError, match=lost), process_group("cpu"):
        raise dist.DistBackendError("NCCL error:\nremote process exited")

    def lose(*_: object, **__: object) -> None:
        raise RuntimeError("Connection reset by peer")

    monkeypatch.setattr(dist, "init_process_group", lose)
    with pytest.raises(UserError, match="Process 0 of 2 has lost another"), process_group("cpu"):
        pass
