"""Which files this program wrote, so that it replaces and removes nothing else.

Each folder that outputs go to has a list of them, `.efficientsam3-files`: a JSON object a line, with a file's name,
size and SHA-256, and what it is part of. A file is the program's own while its content is one that the list has for
its name. Lines are added before files appear, and never removed: a run that is killed at any moment, and two runs at a
time, leave only files that the list has.
"""

import json
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import atomic_path, open_regular, sha256_file, unreadable

LIST_NAME = ".efficientsam3-files"
_FOREIGN = "which efficientsam3 did not write, or which has changed since"
_COUNTED = 1000  # files in an error, at most


class OwnFiles:
    """The list of one folder; neither need be there yet."""

    def __init__(self, folder: Path) -> None:
        """Nothing is read before it is needed."""
        self.folder = folder
        self._wholes: dict[tuple[str, int, str], str] = {}  # name, bytes, SHA-256 -> what the file is part of
        self._sizes: set[tuple[str, int]] = set()
        self._read = 0  # bytes of the list

    def objection(self, name: str, whole: str | None = None) -> str | None:
        """Why the file `name` must not be replaced: None if it is not there, or the program's own.

        Args:
            name: relative to the folder, with slashes.
            whole: what it may be part of, as given to `add`; None for anything.

        Raises:
            UserError: the file or the list cannot be read.
        """
        path = self.folder / name
        try:
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                return _FOREIGN
            self._update()
            if (name, status.st_size) not in self._sizes:
                return _FOREIGN
            found = self._wholes.get((name, status.st_size, sha256_file(path)))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(path, error) from error
        if found is None:
            return _FOREIGN
        return None if whole in (None, found) else f"which is part of {found}"

    def owns(self, name: str) -> bool:
        """Whether the file is there, as the program wrote it."""
        return os.path.lexists(self.folder / name) and self.objection(name) is None

    def add(self, name: str, content: Path, whole: str) -> None:
        """List a file before it appears.

        Args:
            name: of the file, relative to the folder, with slashes.
            content: a file with its content.
            whole: what it is part of, such as "an ONNX directory" or "the answers for cat.jpg".

        Raises:
            OSError: the list cannot be written.
        """
        entry = {"file": name, "bytes": content.stat().st_size, "sha256": sha256_file(content), "of": whole}
        path = self.folder / LIST_NAME
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, ("\n" * torn + json.dumps(entry) + "\n").encode())
        finally:
            os.close(descriptor)

    def _update(self) -> None:
        """Read what was added to the list since the last time, by this process or another."""
        if not os.path.lexists(self.folder / LIST_NAME):
            return
        with open_regular(self.folder / LIST_NAME) as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            entry: Any = json.loads(line)
            name, size, digest, whole = (entry[key] for key in ("file", "bytes", "sha256", "of"))
            self._wholes[name, size, digest] = whole
            self._sizes.add((name, size))
        except (ValueError, TypeError, KeyError, RecursionError):
            return  # a line that a full disk cut short: its file never appeared


def refuse(objections: Iterable[tuple[Path, str]]) -> None:
    """Refuse to replace files.

    Args:
        objections: files, and why each must not be replaced.

    Raises:
        UserError: there are any; the first are named.
    """
    found = list(islice(objections, _COUNTED))
    if found:
        more = f", such as {found[1][0]}" if len(found) > 1 else ""
        count = "" if len(found) == 1 else f", and {len(found) - 1}{'+' * (len(found) == _COUNTED)} more{more}"
        raise UserError(
            f"The output would replace {found[0][0]}, {found[0][1]}{count}: choose another output, move what is there, "
            "or allow it with --overwrite."
        )


def check_files(paths: Iterable[Path], whole: str, overwrite: bool = False) -> None:
    """Check that files may be written.

    Args:
        paths: the files, whether they are there or not.
        whole: what they will be part of, see `OwnFiles.add`.
        overwrite: whether the user allowed to replace other files than the program's own.

    Raises:
        UserError: files are there that the program did not write; the first are named.
    """
    if not overwrite:
        pairs = ((path, OwnFiles(path.parent).objection(path.name, whole)) for path in paths)
        refuse((path, why) for path, why in pairs if why)


@contextmanager
def own_path(path: Path, whole: str, overwrite: bool = False, own: OwnFiles | None = None) -> Iterator[Path]:
    """`atomic_path` for a file that is listed as the program's own, and replaces none but its own.

    Args:
        path: of the file.
        whole: what it is part of, see `OwnFiles.add`.
        overwrite: whether the user allowed to replace any file.
        own: the list of the file's folder, where it was read before.

    Raises:
        UserError: the file is there and the program did not write it, or it cannot be written.
    """
    with atomic_path(path) as temporary:
        yield temporary
        own = own or OwnFiles(path.parent)
        why = None if overwrite else own.objection(path.name, whole)
        if why:
            refuse([(path, why)])
        own.add(path.name, temporary, whole)


def write_own_text(path: Path, text: str, whole: str, overwrite: bool = False, own: OwnFiles | None = None) -> None:
    """Write `text` as UTF-8; see `own_path`."""
    with own_path(path, whole, overwrite, own) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_folder(output: Path, whole: str, overwrite: bool = False) -> None:
    """Check that a folder may be written, which replaces what is there.

    Raises:
        UserError: `output` is a file, a mount point or the current folder, or something is in it that the program did
            not write as part of `whole`; the first are named.
    """
    if not os.path.lexists(output):
        return
    real = output.resolve()
    if not real.is_dir():
        raise UserError(f"The output {output} is not a folder: choose another path.")
    if not overwrite:
        refuse((output / name, why) for name, why in _foreign(real, whole))
    if Path.cwd().is_relative_to(real):
        raise UserError(f"The output {output} holds the current folder, which cannot be replaced: name another folder.")
    if os.path.ismount(real):
        raise UserError(f"The output {output} is the top of a disk, which cannot be replaced: name a folder in it.")


def _foreign(folder: Path, whole: str) -> Iterator[tuple[str, str]]:
    """What is in a folder and below but not the program's own as part of `whole`, empty folders too, and why not."""
    own = OwnFiles(folder)

    def fail(error: OSError) -> None:
        raise unreadable(folder, error) from error

    for below, folders, files in os.walk(folder, onerror=fail):
        links = [name for name in folders if Path(below, name).is_symlink()]
        for name in sorted([*files, *links]):
            relative = Path(below, name).relative_to(folder).as_posix()
            why = None if relative == LIST_NAME else own.objection(relative, whole)
            if why:
                yield relative, why
        if not folders and not files and below != str(folder):
            yield Path(below).relative_to(folder).as_posix(), _FOREIGN


@contextmanager
def own_folder(output: Path, whole: str, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder next to `output`; it replaces `output` on success and is removed otherwise.

    Args:
        output: the final path.
        whole: what the folder is, see `OwnFiles.add`.
        overwrite: whether the user allowed to replace other files than the program's own; files of other names stay.

    Raises:
        UserError: as `check_folder`, or `output` cannot be written.
    """
    check_folder(output, whole, overwrite)
    output = output.resolve()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
            fresh = Path(scratch, "new")
            fresh.mkdir()
            yield fresh
            own = OwnFiles(fresh)
            for file in sorted(path for path in fresh.rglob("*") if path.is_file()):
                own.add(file.relative_to(fresh).as_posix(), file, whole)
            check_folder(output, whole, overwrite)  # something may have come in the meantime
            if overwrite and output.exists():
                _keep_others(output, fresh, whole)
            _swap(fresh, output, Path(scratch, "old"))
    except OSError as error:
        raise UserError(f"Cannot write {output}: {error.strerror}; free some space or choose another path.") from error


def _keep_others(output: Path, fresh: Path, whole: str) -> None:
    """Link what is not the program's own into the folder that will replace `output`, unless it has that name, too."""
    for name, _ in _foreign(output, whole):
        path, kept = output / name, fresh / name
        if os.path.lexists(kept):
            continue
        kept.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and not path.is_symlink():
            kept.mkdir()
        else:
            os.link(path, kept, follow_symlinks=False)


def _swap(fresh: Path, output: Path, old: Path) -> None:
    try:
        if output.exists():
            output.rename(old)
        fresh.rename(output)
    except BaseException:  # a signal's exit, too
        if old.exists():
            old.rename(output)
        raise
