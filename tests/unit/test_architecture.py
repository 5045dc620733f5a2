"""The shape of the package: what may import what, and what must be importable without PyTorch."""

import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

PACKAGE = Path(__file__).parents[2] / "src" / "efficientsam3"
# Help and validation must not wait for PyTorch, so that neither may the tables and requests that they are made of.
WITHOUT_TORCH = [
    "cli",
    "config.schema",
    "data.layouts",
    "models.heads",
    "models.students",
    "predict.onnx_sam3",
    "runtime.device",
    "store.codecs",
    *(
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for pattern in ("commands/*.py", "**/request.py", "**/requests.py")
        for path in sorted(PACKAGE.glob(pattern))
        if path.stem != "__init__"
    ),
]


def test_the_import_contracts_of_pyproject_hold(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Imports point down, without circles, and configuration stops at the plan."""
    monkeypatch.syspath_prepend(str(repository / "src"))  # `lint_imports` adds the working directory
    # It would switch off all loggers that exist, for every test after this one.
    monkeypatch.setattr("importlinter.cli.logging_config.dictConfig", lambda _: None)
    kept = lint_imports(str(repository / "pyproject.toml"), no_cache=True) == 0
    assert kept, capsys.readouterr().out


def test_tables_and_commands_import_no_pytorch() -> None:
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(f'efficientsam3.{name}')\n"
        "    if 'torch' in sys.modules: sys.exit(f'{name} imports torch')"
    )
    done = subprocess.run([sys.executable, "-c", code, *WITHOUT_TORCH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
