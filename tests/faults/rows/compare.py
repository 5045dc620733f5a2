"""Sizes of models."""

import os

from faults.fault import Fault, Place, refused


def _garbage(place: Place) -> None:
    (place.root / "x.pt").write_bytes(os.urandom(4096))


ROWS = [
    Fault("compare-h1", "compare --student nonsense", "compare --student nonsense", refused("nonsense"), slow=True),
    Fault(
        "compare-h2",
        "compare --sam3-ckpt garbage",
        "compare --student es_ev_s --sam3-ckpt {root}/x.pt",
        refused("x.pt"),
        _garbage,
        slow=True,
    ),
]
