"""What can be wrong with a file of a dataset."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Kind(StrEnum):
    """Kinds of problems. Files with one of the first three are useless, and can be moved away."""

    BROKEN_IMAGE = "broken image"
    BROKEN_ANNOTATION = "broken annotation"
    NO_IMAGE = "annotation without image"
    UNREADABLE = "unreadable"  # as on a failing disk: it may be right
    MASK = "questionable mask"
    SIZE = "annotation of another size"
    DUPLICATE = "same content"
    BOTH_SPLITS = "in both splits"
    MISSING = "image missing"
    UNNAMED = "image not in the instances file"
    ID = "wrong id in the instances file"


FIXABLE = {Kind.BROKEN_IMAGE, Kind.BROKEN_ANNOTATION, Kind.NO_IMAGE}


@dataclass(frozen=True, order=True)
class Problem:
    """Something wrong with one file."""

    kind: Kind
    file: Path
    detail: str
