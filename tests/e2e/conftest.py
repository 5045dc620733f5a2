"""Running the real commands."""

import subprocess
from collections.abc import Callable

import pytest

from e2e.processes import ROOT, environment

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def run() -> Run:
    """Run a command in the checkout; `code` is the exit code it must return."""

    def run_command(*command: object, code: int = 0, timeout: float = 240) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [str(part) for part in command],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run_command
