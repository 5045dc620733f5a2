"""Embedding stores."""

from faults.fault import Fault, Place, refused


def _manifest_is_a_folder(place: Place) -> None:
    manifest = place.store / "manifest.json"
    manifest.unlink()
    manifest.mkdir()


ROWS = [
    Fault(
        "S13",
        "manifest.json is a folder: verify",
        "store verify {store}",
        refused("manifest.json"),
        _manifest_is_a_folder,
    ),
]
