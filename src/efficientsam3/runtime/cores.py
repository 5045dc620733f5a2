"""How many cores there are to use."""

import os


def usable_cores() -> int:
    """Cores that this process may run on, as far as the system tells; at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
