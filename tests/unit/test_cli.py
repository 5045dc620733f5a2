import subprocess
import sys

import pytest

from efficientsam3.cli import COMMANDS, main
from efficientsam3.runtime.errors import UserError


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"usage: efficientsam3 {command}" in capsys.readouterr().out


def test_the_table_of_commands_is_shown_and_needs_no_pytorch() -> None:
    code = (
        "import sys; from efficientsam3.cli import build_parser;"
        "print(build_parser().format_help()); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"    {command} " in done.stdout for command in COMMANDS)
    assert done.stdout.splitlines()[-1] == "False"


def test_a_users_error_is_one_sentence_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--cfg", "absent.yaml"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("efficientsam3 export: Configuration file absent.yaml is not a file")
    assert captured.err.count("\n") == 1


def test_debug_lets_the_error_through() -> None:
    with pytest.raises(UserError):
        main(["export", "--cfg", "absent.yaml", "--debug"])


def test_an_unknown_command_is_refused() -> None:
    with pytest.raises(SystemExit) as stop:
        main(["frobnicate"])
    assert stop.value.code == 2
