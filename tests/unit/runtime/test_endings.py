"""However a program ends, stderr has one sentence, and a log the rest."""

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from efficientsam3.runtime.endings import run_to_the_end
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.logging import start_logging, stop_logging
from efficientsam3.runtime.streams import forgive_encoding


def raises(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("efficientsam3.runtime.logging._logs", [])


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (FileNotFoundError(2, "No such file or directory", "/no/where"), 2, "No such file or directory: /no/where"),
        (UnicodeEncodeError("ascii", "\xe9", 0, 1, "ordinal not in range"), 2, "UnicodeEncodeError"),
        (ValueError("month must be in 1..12"), 2, "month must be in 1..12"),
        (RecursionError("maximum recursion depth exceeded"), 2, "nested too deeply"),
        (MemoryError(), 2, "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "not enough memory"),
        (OverflowError("int too large"), 2, "int too large"),
        (ValueError("Caught\nTraceback (most recent call last):\n  File x\nValueError: bad image\n"), 2, "bad image"),
        (AssertionError("never"), 1, "This is a bug (AssertionError never)"),
        (TypeError("unhashable"), 1, "This is a bug"),
        (ValueError("a\n\n b" * 1000), 2, "..."),
    ],
)
def test_what_nobody_foresaw_is_one_sentence_and_its_traceback_a_log(
    error: Exception, code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_to_the_end("efficientsam3 merge", raises(error)) == code
    said = capsys.readouterr().err
    assert said.startswith("efficientsam3 merge: ")
    assert words in said
    assert said.count("\n") == 1
    assert len(said) < 600
    (log,) = tmp_path.iterdir()
    assert str(log) in said
    assert "Traceback (most recent call last)" in log.read_text()


def test_the_traceback_goes_to_the_log_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        start_logging(tmp_path / "out", 1)
        try:
            raise OSError(5, "Input/output error")
        finally:
            stop_logging()

    assert run_to_the_end("efficientsam3 train", work) == 2
    assert str(tmp_path / "out" / "log_rank1.txt") in capsys.readouterr().err
    assert "Input/output error" in (tmp_path / "out" / "log_rank1.txt").read_text()


def test_without_a_place_for_the_log_debug_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    assert run_to_the_end("x", raises(ValueError("bad"))) == 2
    assert capsys.readouterr().err == "x: ValueError bad; --debug shows the traceback.\n"


def test_a_users_error_has_no_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_to_the_end("x", raises(UserError("Give another."))) == 2
    assert capsys.readouterr().err == "x: Give another.\n"
    assert list(tmp_path.iterdir()) == []


def test_names_cannot_break_the_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_to_the_end("x", raises(UserError("a\nb\x1b[2Jc\udcff é."))) == 2
    assert capsys.readouterr().err == "x: a\\nb\\x1b[2Jc\\udcff é.\n"


def test_the_rest_ends_as_it_does_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_to_the_end("x", lambda: None) == 0
    assert run_to_the_end("x", raises(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "x: interrupted\n"
    with pytest.raises(SystemExit) as stop:
        run_to_the_end("x", raises(SystemExit(143)))
    assert stop.value.code == 143
    with pytest.raises(ZeroDivisionError):
        run_to_the_end("x", raises(ZeroDivisionError()), debug=True)


def test_stdout_that_nobody_reads_ends_quietly(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert run_to_the_end("x", lambda: print("a line")) == 141
        assert run_to_the_end("x", lambda: print("and more, which goes nowhere")) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no full device")
def test_a_full_device_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert run_to_the_end("x", lambda: print("a line")) == 2
    assert "Cannot write to the standard output: No space left on device" in capsys.readouterr().err


def test_a_stream_writes_what_its_encoding_lacks() -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii")
    forgive_encoding(stream)
    stream.write("a\udcffé狗")
    stream.flush()
    assert written.getvalue() == b"a\xff\\xe9\\u72d7"
