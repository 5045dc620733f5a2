"""How a program ends: with one sentence and an exit code, whatever happened; a traceback goes into a log file."""

import contextlib
import errno
import os
import platform
import select
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import efficientsam3
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.streams import forgive_encoding

DONE, A_BUG, REFUSED, INTERRUPTED, CLOSED_PIPE = 0, 1, 2, 130, 141  # the last two are 128 + the number of a signal
# What the system, or a value of the user's, raises where no better sentence was found. Anything else is a bug.
_OUTSIDE = (OSError, ValueError, OverflowError, MemoryError, RecursionError, EOFError)
_LONGEST = 300  # characters of an exception's own words


def run_to_the_end(name: str, work: Callable[[], object], debug: bool = False) -> int:
    """Do `work`, and say on stderr why it could not be done.

    Args:
        name: what runs, in front of the sentence.
        work: what to do.
        debug: let exceptions through.

    Returns:
        0; 2 where the user, or the system, has something to put right; 1 after a bug; 130 after Ctrl-C; 141 where
        nobody reads stdout any longer.

    Raises:
        SystemExit: `work` raised it.
    """
    forgive_encoding(sys.stdout)
    stop: SystemExit | None = None
    code, error = DONE, None
    try:
        work()
    except SystemExit as raised:
        stop = raised
    except KeyboardInterrupt:
        code = _say(f"{name}: interrupted", INTERRUPTED)
    except Exception as raised:
        if debug:
            raise
        error = raised
    lost = _lost_output(error)
    if lost is not None:
        if lost.errno == errno.EPIPE:
            return CLOSED_PIPE
        reason = (
            f"{name}: Cannot write to the standard output: {lost.strerror}; free some space or redirect it elsewhere."
        )
        code = _say(reason, REFUSED)
    elif isinstance(error, UserError):
        code = _say(f"{name}: {error}", REFUSED)
    elif error is not None:
        code = _unforeseen(name, error)
    if stop is not None:
        raise stop
    return code


def _say(sentence: str, code: int) -> int:
    # A name may have a line break, or what a terminal takes for a command.
    sentence = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in sentence)
    if sys.stderr is not None:  # started with stderr closed
        try:
            print(sentence, file=sys.stderr, flush=True)
        except OSError:
            _silence(sys.stderr)
    return code


def _unforeseen(name: str, error: Exception) -> int:
    reason = _in_words(error)
    log = _write_log(name, error)
    where = f"the traceback is in {log}" if log else "--debug shows the traceback"
    if isinstance(error, _OUTSIDE) or _is_out_of_memory(error):
        return _say(f"{name}: {reason}; {where}.", REFUSED)
    return _say(f"{name}: This is a bug ({reason}): please report it; {where}.", A_BUG)


def _in_words(error: Exception) -> str:
    """What an exception says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        paths = [os.fsdecode(path) for path in (error.filename, error.filename2) if isinstance(path, str | bytes)]
        text = ": ".join((error.strerror, " -> ".join(paths))) if paths else error.strerror
    elif isinstance(error, RecursionError):
        text = "Something is nested too deeply"
    elif _is_out_of_memory(error):
        text = f"There is not enough memory {error}"
    else:
        text = f"{type(error).__name__} {error}"
    lines = [line for line in text.splitlines() if line.strip()]
    if any(line.startswith("Traceback (most recent call last)") for line in lines):
        lines = lines[-1:]  # of a process that reads images, whose whole traceback is its exception's message
    words = " ".join(" ".join(lines).split())
    return f"{words[:_LONGEST]}..." if len(words) > _LONGEST else words


def _is_out_of_memory(error: Exception) -> bool:
    # PyTorch's are RuntimeErrors.
    return isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "allocate memory" in str(error)


def _write_log(name: str, error: Exception) -> Path | None:
    """Write a traceback to the log of the run, if there was one, else to a new temporary file; None if that fails."""
    from efficientsam3.runtime.logging import last_log

    try:
        text = "".join(traceback.format_exception(error))
        about = f"efficientsam3 {efficientsam3.__version__}, Python {platform.python_version()}, {platform.platform()}"
        text = f"{about}\n{sys.argv}\n{text}".encode(errors="backslashreplace").decode()
        with contextlib.suppress(OSError):
            if (run_log := last_log()) is not None:
                with run_log.open("a", encoding="utf-8") as file:
                    file.write(text)
                return run_log
        handle, path = tempfile.mkstemp(prefix=f"{name.replace(' ', '-')}-", suffix=".log")
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        return Path(path)
    except (OSError, MemoryError):
        return None


def _lost_output(error: Exception | None) -> OSError | None:
    """Why stdout cannot be written to, if that is so; nothing is written to it from then on."""
    stream = sys.stdout
    if stream is None or stream.closed:  # started with stdout closed
        return None
    lost = None
    try:
        stream.flush()
    except OSError as raised:
        lost = raised
    if lost is None and isinstance(error, BrokenPipeError) and _is_unread(stream):
        lost = error
    if lost is not None:
        _silence(stream)
    return lost


def _silence(stream: TextIO) -> None:
    """Let what is left to be written go nowhere: Python tries again when it exits, and returns 120 if it fails."""
    with contextlib.suppress(OSError, ValueError):
        descriptor = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _is_unread(stream: TextIO) -> bool:
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
    except (OSError, ValueError):
        return False
