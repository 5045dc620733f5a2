"""CoreML packages."""

import os
from collections.abc import Callable

from faults.fault import Fault, Place, refused


def _garbage(name: str) -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        (place.root / name).write_bytes(os.urandom(4096))

    return spoil


def _package(name: str, manifest: str | None) -> Callable[[Place], None]:
    """A user's folder; with the manifest of another program's package where one is given."""

    def spoil(place: Place) -> None:
        _ = place.merged
        (place.root / name).mkdir()
        (place.root / name / "mine.txt").write_text("mine")
        if manifest is not None:
            (place.root / name / "Manifest.json").write_text(manifest)

    return spoil


def _row(case: str, what: str, spoil: Callable[[Place], None], name: str) -> Fault:
    command = "export-coreml {merged} --out {root}/" + name
    return Fault(case, f"export-coreml onto {what}", command, refused(name), spoil, slow=True)


_OTHERS = '{"fileFormatVersion": "1.0.0", "itemInfoEntries": {}, "rootModelIdentifier": "x"}'

ROWS = [
    *[
        Fault(
            case,
            f"export-coreml of garbage ({name})",
            f"export-coreml {{root}}/{name} --out {{root}}/c.mlpackage",
            refused(name),
            _garbage(name),
            slow=True,
        )
        for case, name in (("coreml-h1", "x.pt"), ("coreml-h4", "x.pth"))
    ],
    _row("coreml-h2", "a user's folder", _package("c.mlpackage", None), "c.mlpackage"),
    _row("coreml-h3", "a user's folder with a Manifest.json", _package("c.mlpackage", "{}"), "c.mlpackage"),
    _row("coreml-h5", "another user's folder", _package("u.mlpackage", None), "u.mlpackage"),
    _row("coreml-h6", "another app's package", _package("u.mlpackage", _OTHERS), "u.mlpackage"),
]
