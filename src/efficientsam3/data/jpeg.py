"""Quick checks of a JPEG without decoding it."""

import mmap

START, SCAN, END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"


def is_jpeg(data: bytes | mmap.mmap) -> bool:
    """Whether a file begins as a JPEG does."""
    return data[:2] == START


def is_unfinished(data: bytes | mmap.mmap) -> bool:
    """Whether a JPEG lacks the end marker after its last scan.

    Decoders paint the missing part grey when the rest of the file is there but zero, as after a crash or a full disk.
    Neither marker can occur within a scan's data.
    """
    return data[-2:] != END and data.rfind(END) <= data.rfind(SCAN)
