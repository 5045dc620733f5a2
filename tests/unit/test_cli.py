import subprocess
import sys
from pathlib import Path

import pytest

from efficientsam3.cli import ALIASES, COMMANDS, main
from efficientsam3.runtime.errors import UserError


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"usage: efficientsam3 {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ALIASES)
def test_old_names_of_commands_are_understood(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--cfg", "absent.yaml"]) == 2
    assert "absent.yaml is not a file" in capsys.readouterr().err


def test_the_table_of_commands_is_shown_and_needs_no_pytorch() -> None:
    code = (
        "import sys; from efficientsam3.cli import build_parser;"
        "print(build_parser().format_help()); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rows = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("    ") and line.strip()}
    assert rows >= set(COMMANDS)
    assert done.stdout.splitlines()[-1] == "False"


def test_a_users_error_is_one_sentence_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", "--cfg", "absent.yaml"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("efficientsam3 embed: Configuration file absent.yaml is not a file")
    assert captured.err.count("\n") == 1


def test_debug_lets_the_error_through() -> None:
    with pytest.raises(UserError):
        main(["embed", "--cfg", "absent.yaml", "--debug"])


def test_an_unknown_command_is_refused() -> None:
    with pytest.raises(SystemExit) as stop:
        main(["frobnicate"])
    assert stop.value.code == 2


def test_sigterm_ends_a_command_in_order(tmp_path: Path) -> None:
    """What a command leaves by `finally` is done: here a temporary file goes."""
    code = (
        "import sys; from pathlib import Path; from types import SimpleNamespace; import efficientsam3.cli as cli\n"
        "from efficientsam3.runtime.files import atomic_path\n"
        "def run(args):\n"
        "    with atomic_path(Path(sys.argv[1]) / 'out'):\n"
        "        print('ready', flush=True); import time; time.sleep(60)\n"
        "from efficientsam3.runtime.request import Request\n"
        "cli._module = lambda _: SimpleNamespace(REQUEST=Request, run=run)\n"
        "cli.main(['merge'])"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(30) == 143
    assert list(tmp_path.iterdir()) == []


def test_sigterm_does_not_interrupt_pythons_exit() -> None:
    script = (
        "import atexit, os, signal\n"
        "atexit.register(lambda: (os.kill(os.getpid(), signal.SIGTERM), print('in order')))\n"
        "from efficientsam3.cli import main\n"
        "raise SystemExit(main(['store', 'info', '/nowhere']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "in order\n"), done.stderr
