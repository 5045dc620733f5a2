"""Keys are told from flags, the check runs before the processes, and an exit code comes back; nothing really runs."""

from collections.abc import Sequence

import pytest

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.launch import Outcome
from efficientsam3.workflow import launcher
from efficientsam3.workflow.launcher import launch, split_keys


def test_an_argument_beats_a_variable_and_the_rest_is_the_scripts() -> None:
    values, flags = split_keys(
        ["GPUS=2", "CFG=a=b", "--opts", "SEED", "1", ""], {"GPUS": "1", "OUTPUT": "o", "HOME": "h"}
    )
    assert values == {"GPUS": "2", "OUTPUT": "o", "CFG": "a=b"}
    assert flags == ["--opts", "SEED", "1", ""]
    with pytest.raises(UserError, match="DATAPATH is not a key of the launchers"):
        split_keys(["DATAPATH=x"], {})


class Runs:
    def __init__(self, code: int) -> None:
        self.checked: list[str] = []
        self.variables: dict[str, str] = {}
        self.started: list[str] = []
        self._code = code

    def alone(self, command: Sequence[str], variables: dict[str, str]) -> Outcome:
        self.checked, self.variables = list(command[1:]), variables
        return Outcome(self._code, ())

    def torchrun(self, processes: int, arguments: Sequence[str]) -> Outcome:
        self.started = [str(processes), *arguments]
        return Outcome(-9, ())


@pytest.mark.parametrize(("code", "returned"), [(2, 2), (0, 137)])
def test_the_check_comes_first(code: int, returned: int, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(code)
    monkeypatch.setattr(launcher, "run_alone", runs.alone)
    monkeypatch.setattr(launcher, "run_torchrun", runs.torchrun)
    arguments = ["GPUS=2", "DATA_PATH=$(touch x); y", "--opts", "SEED", "1"]
    assert launch("train.py", "c.yaml", arguments, {"BATCH_SIZE": "3", "CFG": ""}) == returned
    given = ["train.py", "--cfg", "c.yaml", "--data-path", "$(touch x); y", "--batch-size", "3"]
    assert runs.checked == [*given, "--dry-run", "2", "--opts", "SEED", "1"]
    assert runs.variables == {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    if code == 0:
        assert runs.started[-len(given) - 3 :] == [*given, "--opts", "SEED", "1"]
        assert runs.started[0] == "2"
    else:
        assert runs.started == []
