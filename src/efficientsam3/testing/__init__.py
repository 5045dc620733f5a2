"""Small stand-ins for the tests and the demo: a SAM3 in `sam3.pt`'s layout, a set of photographs in SA-1B's format."""
